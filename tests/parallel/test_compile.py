"""What is said of compiling: where its code is kept, and how long the first step took."""

import tempfile
from pathlib import Path

import pytest
import torch

from mmtrain.cli import main
from mmtrain.parallel.compile import PAYS_FROM, compiled_code, why_not
from mmtrain.parallel.mesh import Layout, ParallelConfig
from mmtrain.parallel.precision import Precision

RUN = ["train", "configs/debug_clip.toml", "--data.workers", "0", "--train.batch_size", "8"]
RUN += ["--eval.zero_shot", "[]", "--train.checkpoint_every", "1"]


def test_the_folder_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert compiled_code() == Path(cache_dir())
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", tempfile.gettempdir())
    assert compiled_code() == Path(cache_dir()) == Path(tempfile.gettempdir())


def test_a_run_tells_where_code_is_kept_and_what_the_first_step_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each process that compiles, and of no other."""
    monkeypatch.setattr(torch, "compile", lambda forward: forward)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    run = ["--run-dir", str(tmp_path / "run")]
    monkeypatch.setattr("mmtrain.build.run.why_not", lambda *_, num_steps: None)
    for words, how in (
        (["--train.steps", "2"], "true"),
        (["--train.steps", "4", "--resume-with-changes"], "auto"),
    ):
        assert main([*RUN, *run, *words, "--train.compile", how]) == 0
        told = capsys.readouterr().err
        assert ('train.compile = "auto": the blocks are compiled' in told) == (how == "auto")
        assert told.count("the first step took ") == 1
        assert f"the code is kept in {tmp_path / 'code'} for the next run" in told
    monkeypatch.setattr("mmtrain.build.run.why_not", why_not)
    words = ["--run-dir", str(tmp_path / "plain"), "--train.steps", "1", "--train.compile", "auto"]
    assert main([*RUN, *words]) == 0
    told = capsys.readouterr().err
    assert "the blocks are not compiled: it pays from 1,000 steps on, and the run has 1" in told
    assert "first step" not in told and "the code is kept" not in told


@pytest.mark.parametrize(
    ("precision", "num_steps", "amx", "compiler", "told"),
    [
        ("bf16", PAYS_FROM, True, "/usr/bin/g++", None),
        ("bf16-pure", PAYS_FROM, True, "/usr/bin/g++", None),
        ("bf16", PAYS_FROM - 1, True, "/usr/bin/g++", "it pays from 1,000 steps on"),
        ("bf16", PAYS_FROM, False, "/usr/bin/g++", "in bf16 on a CPU with AMX"),
        ("fp32", PAYS_FROM, True, "/usr/bin/g++", "in bf16 on a CPU with AMX"),
        ("bf16", PAYS_FROM, True, None, "there is no C++ compiler"),
    ],
)
def test_auto_compiles_where_it_pays(
    precision: Precision,
    num_steps: int,
    amx: bool,
    compiler: str | None,
    told: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("shutil.which", lambda _: compiler)
    layout = Layout(device=torch.device("cpu"), config=ParallelConfig())
    found = why_not(layout, precision, num_steps=num_steps)
    assert found is None if told is None else told in str(found)


@pytest.mark.parametrize("triton", [None, object()])
def test_auto_on_cuda_asks_for_triton(triton: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: triton)
    layout = Layout(device=torch.device("cuda"), config=ParallelConfig())
    assert (why_not(layout, "bf16", num_steps=PAYS_FROM) is None) == (triton is not None)
