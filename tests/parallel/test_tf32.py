"""TF32 is of what asks for it: of a run's and an evaluation's towers, never of a loss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmtrain.build import run as build_run
from mmtrain.cli import main
from mmtrain.errors import UsageError
from mmtrain.losses import affinity_loss, clip_loss, siglip_loss
from mmtrain.models import Clip
from mmtrain.nn.products import allows_tf32, fast_products, tf32_products
from mmtrain.parallel import precision
from mmtrain.parallel.precision import apply_precision, autocast
from mmtrain.tasks.objective import Objective
from mmtrain.tasks.terms.distill import Teacher
from tests.parallel.test_data_parallel_kinds import losses_on_a_gpu
from tests.parallel.tiny_clip import tiny_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEBUG = Path("mmtrain/demo/debug")
B, E = 6, 8


class Products(TorchDispatchMode):
    """Whether TF32 was allowed at each product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in func.__name__ for word in ("mm", "conv")):
            self.allowed.append(allows_tf32())
        return func(*args, **(kwargs or {}))


def flags() -> tuple[bool, bool]:
    """Of products of matrices, and of convolutions."""
    return allows_tf32(), torch.backends.cudnn.allow_tf32


def test_matrices_and_convolutions_follow_and_are_left_as_they_were() -> None:
    """torch itself begins with TF32 for convolutions alone."""
    start = flags()
    for tf32 in (True, False):
        with fast_products(CUDA, tf32=tf32):
            assert flags() == (tf32, tf32)
            with tf32_products(not tf32):
                assert flags() == (not tf32, not tf32)
            with pytest.raises(KeyError), autocast("fp32", CPU):
                assert flags() == (False, False)
                raise KeyError
            assert flags() == (tf32, tf32)
    assert flags() == start


def affinity(image_BE: Tensor, text_BE: Tensor, **_: Any) -> Tensor:
    teacher = [torch.nn.functional.normalize(torch.randn(B, E), dim=1) for _ in range(2)]
    return affinity_loss(
        image_BE,
        text_BE,
        logit_scale=5.0,
        teacher_image_BE=teacher[0],
        teacher_text_BE=teacher[1],
        teacher_logit_scale=10.0,
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, labels: clip_loss(x, y, logit_scale=10.0),
        lambda x, y, labels: clip_loss(x, y, logit_scale=10.0, labels_B=labels),
        lambda x, y, labels: siglip_loss(x, y, logit_scale=10.0, logit_bias=-3.0),
        lambda x, y, labels: affinity(x, y),
    ],
)
def test_no_loss_multiplies_in_it(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Forward and backward, whatever is around: cosines times 100 would be off by 0.05."""
    features = [torch.randn(B, E, requires_grad=True) for _ in range(2)]
    with tf32_products(True), Products() as products:
        loss(features[0], features[1], torch.tensor([0, 0, 1, 2, 2, 2])).backward()
        assert allows_tf32()
    assert len(products.allowed) >= 3 and not any(products.allowed)


def test_it_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor, on an older GPU, and where the process would not take it."""
    stage = Clip(tiny_config()).stage()
    with pytest.raises(UsageError, match=r"TF32 \(compute capability 8\.0 or higher\), not device"):
        apply_precision(stage, "tf32", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(UsageError, match=r'not Tesla T4 \(7\.5\); use train\.precision = "fp32"'):
        apply_precision(stage, "tf32", CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(UsageError, match=r"set torch\.backends\.cuda\.matmul\.allow_tf32 = True"):
        apply_precision(stage, "tf32", CUDA)
    with tf32_products(True):
        apply_precision(stage, "tf32", CUDA)


def test_an_evaluation_asks_for_what_its_device_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a line, before its model is read."""
    words = ["eval", "zero-shot", "--model", str(tmp_path), "--data", str(DEBUG / "train.tar")]
    words += ["--classes", str(DEBUG / "classes.json"), "--out", str(tmp_path / "out.json")]
    assert main([*words, "--device", "cpu", "--precision", "tf32"]) == 2
    assert 'precision = "tf32" needs a GPU' in capsys.readouterr().err


def watch(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[list[bool]]:
    """Whether TF32 was allowed at the products of each call of a function from here on."""
    seen: list[list[bool]] = []
    called = getattr(owner, name)

    def watched(*arguments: Any, **rest: Any) -> Any:
        with Products() as products:
            result = called(*arguments, **rest)
        seen.append(products.allowed)
        return result

    monkeypatch.setattr(owner, name, watched)
    return seen


def train(run: Path, kind: str, *words: str) -> list[str]:
    """The losses of two steps, to the last digit."""
    command = ["train", "configs/debug_clip.toml", "--run-dir", str(run), "--train.steps", "2"]
    assert main([*command, "--train.log_every", "1", "--train.precision", kind, *words]) == 0
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [line.partition('"loss": ')[2].split(",")[0] for line in lines if '"loss": ' in line]


def test_a_run_takes_it_for_its_towers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward; not for its evaluations, nor for a teacher in fp32. On a processor it
    changes no bit."""
    monkeypatch.setattr(precision, "_lacking", lambda *_: None)
    steps = watch(Objective, "step", monkeypatch)
    evaluations = watch(build_run, "run_evaluation", monkeypatch)
    judged = f'[{{name = "own", data = "{DEBUG}/train.tar", classes = "{DEBUG}/classes.json"}}]'
    plain, allowed = (
        train(tmp_path / kind, kind, "--eval.zero_shot", judged) for kind in ("fp32", "tf32")
    )
    assert len(plain) == 2 and plain == allowed
    assert not any(map(any, steps[:2])) and len(steps) == 4 and len({*map(len, steps)}) == 1
    for each in steps[2:]:
        assert 3 <= each.count(False) <= 8 < each.count(True)  # the loss, and the towers
    assert all(evaluations) and not any(map(any, evaluations))
    taught = watch(Teacher, "rows", monkeypatch)
    terms = f'[{{kind = "distill", teacher = "{tmp_path}/fp32", weight = 0.5}}]'
    train(tmp_path / "taught", "tf32", "--loss.terms", terms)
    assert len(taught) == 2 and all(taught) and not any(map(any, taught))


@pytest.mark.gpu
def test_a_gpu_trains_in_it_nearly_as_in_fp32(tmp_path: Path) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    words = ("--train.steps", "6", "--train.precision")
    want = losses_on_a_gpu(tmp_path / "fp32", *words, "fp32")
    got = losses_on_a_gpu(tmp_path / "tf32", *words, "tf32")
    assert got == pytest.approx(want, rel=1e-2)
    assert got != want
