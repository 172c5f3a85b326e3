"""Settings that another kind of recipe leaves idle are all told in one line."""

from typing import Any

import pytest

from mmtrain.data.config import DataConfig
from mmtrain.data.mixture import MixtureSource
from mmtrain.errors import UsageError
from mmtrain.limits import idle_line
from mmtrain.models.trunks.config import ResNetTrunk
from mmtrain.models.vision_config import VisionConfig, resnet_vision
from mmtrain.optim.config import OptimConfig
from mmtrain.peft.config import PeftConfig
from tests.data.shard_files import build_data

SETS = {"train": "a.tar"}
MIXTURE = tuple(
    MixtureSource(name=f"n{size}", train=f"synthetic:{size}", weight=1.0) for size in (16, 24)
)


def tower(**changes: Any) -> VisionConfig:
    """A ResNet's, with settings of patches."""
    plain = resnet_vision(ResNetTrunk(layers=(1, 1, 1, 1), width=32), image_size=64)
    return VisionConfig(**vars(plain) | changes)


def of_questions(**settings: Any) -> None:
    DataConfig(**SETS, **settings).refuse_captions("questions")


@pytest.mark.parametrize(
    ("make", "settings", "told"),
    [
        (OptimConfig, {"muon_lr": 0.1, "muon_momentum": 0.5}, "; set kind = .muon. or remove"),
        (PeftConfig, {"kind": "prompt", "rank": 3, "dora": False}, "with kind = .prompt.; leave"),
        (DataConfig, SETS | {"stream_buffer": 7, "allow_pipe": True}, "without stream = true"),
        (DataConfig, SETS | {"join_key": "id", "join_missing": "keep"}, "without join"),
        (
            DataConfig,
            SETS | {"mixture_end": "repeat", "mixture_batches": "single"},
            r"without \[\[data.mixture\]\]",
        ),
        (of_questions, {"label_key": "cls", "caption_lines": True}, "on questions"),
        (
            build_data,
            {"train": None, "mixture": MIXTURE, "index_dir": "i", "on_damage": "use_rest"},
            ": none of the data are shards",
        ),
        (tower, {"patch_size": 16, "class_token": True}, "on a tower with trunk.kind = .resnet."),
    ],
)
def test_all_idle_settings_are_told_at_once(make: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, UsageError), match=rf" have no effect ?{told}") as caught:
        make(**settings)
    line = str(caught.value)
    assert ("\n" not in line and line.endswith(" them out")) or line.endswith("remove them")
    idle = [name for name in settings if name not in ("train", "mixture", "kind")]
    assert all(name in line.partition(" have no effect")[0] for name in idle)


def test_one_alone_is_told_as_one() -> None:
    assert idle_line(["a = 1"], "on b") == "a = 1 has no effect on b; leave it out"
    assert idle_line(["a", "b"], ": why") == "a, b have no effect: why; leave them out"
    assert idle_line(["a"], remedy="set b or remove {it}") == (
        "a has no effect; set b or remove it"
    )
