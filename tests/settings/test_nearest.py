"""A foreign word is told its meaning, and letters alone mislead nobody."""

import typing

import pytest

from mmtrain.parallel.precision import Precision
from mmtrain.settings.nearest import nearest

PRECISIONS = typing.get_args(Precision)


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        *(
            (word, PRECISIONS, "bf16")
            for word in ("bfloat16", "bf16-mixed", "amp", "BF16", "amp_bf16")
        ),
        *((word, PRECISIONS, "fp16") for word in ("float16", "half", "16", "16-mixed", "FP16")),
        *((word, PRECISIONS, "fp32") for word in ("float32", "float", "32", "full", "32-true")),
        ("double", PRECISIONS, "fp64"),
        ("fp8", PRECISIONS, "float8"),
        ("bf16_pure", PRECISIONS, "bf16-pure"),
        ("flaot8", PRECISIONS, "float8"),
        ("float4", PRECISIONS, None),
        ("adam", ("adamw", "muon"), "adamw"),
        ("sgd", ("adamw", "muon"), None),
        ("linear-warmup-cosine", ("cosine", "constant", "wsd"), "cosine"),
        ("gelu_new", ("gelu", "gelu_tanh", "quick_gelu", "relu"), "gelu_tanh"),
        ("quickgelu", ("gelu", "gelu_tanh", "quick_gelu", "relu"), "quick_gelu"),
        ("RMSNorm", ("layer", "rms", "partial_rms", "gemma_rms"), "rms"),
        ("sigmoid", ("clip", "siglip"), "siglip"),
        ("softmax", ("clip", "siglip"), "clip"),
        ("cls", ("first", "mean", "attention"), "first"),
        ("zero2", ("fsdp", "ddp", "zero1"), None),
        ("zero3", ("fsdp", "ddp", "zero1"), "fsdp"),
        ("1f1b", ("GPipe", "1F1B", "Interleaved1F1B"), "1F1B"),
        ("open_clip", ("mmtrain", "open-clip", "hf"), "open-clip"),
        ("ViT-B/32", ("ViT-B-32", "ViT-B-16"), "ViT-B-32"),
        ("", PRECISIONS, None),
    ],
)
def test_the_nearest_word(word: str, known: tuple[str, ...], meant: str | None) -> None:
    assert nearest(word, known) == meant
