"""The public names are those of docs/python/index.md: they are there, and say what they do."""

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from mmtrain.data.shards.source import ShardSource
from mmtrain.demo import debug_pairs
from mmtrain.errors import UsageError
from mmtrain.eval import Encoder, evaluate_retrieval
from mmtrain.models import Clip, ClipConfig, TextConfig, VisionConfig, parameter_names
from mmtrain.nn import TransformerConfig
from mmtrain.optim import OptimConfig, build_optimizers
from mmtrain.parallel import ParallelConfig, build_layout, parallelize

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/python/index.md").read_text("utf-8")
LISTED = {
    room: re.findall(r"`(\w+)`", names)
    for room, names in re.findall(r"^\| `(mmtrain[\w.]*)` \| (.*) \|$", PAGE, re.MULTILINE)
}
# What these export beside is for other rooms of the house.
SHARED = ("mmtrain.losses", "mmtrain.models", "mmtrain.nn", "mmtrain.peft")


@pytest.mark.parametrize("room", LISTED)
def test_public_names_are_exported_and_documented(room: str):
    module = importlib.import_module(room)
    exported = {name for name in module.__all__ if not name.startswith("__")}
    listed = set(LISTED[room])
    assert listed <= exported if room in SHARED else listed == exported
    assert set(module.__all__) <= set(dir(module))
    for name in listed:
        found: Any = getattr(module, name)
        if callable(found) and getattr(found, "__module__", "").startswith("mmtrain"):
            assert found.__doc__, name


def test_the_page_lists_them():
    assert len(LISTED) == 11 and sum(map(len, LISTED.values())) > 60


@pytest.mark.parametrize("room", LISTED)
def test_docstrings_are_read_whole_on_the_site(room: str):
    """`<x>` outside of code would be a tag of HTML there, and unseen."""
    module = importlib.import_module(room)
    for name in LISTED[room]:
        found: Any = getattr(module, name)
        members = vars(found).items() if isinstance(found, type) else ()
        for part, one in [(name, found), *members]:
            text = one.__doc__ if callable(one) else None
            # Python 3.13 has taken the indentation that all lines share away, earlier ones not.
            for paragraph in inspect.cleandoc(text or "").split("\n\n"):
                prose = re.sub(r"`[^`]*`", "", paragraph)
                is_code = bool(re.match(r"\n?(?: {4}| {8})\S", paragraph)) and "=" in paragraph
                assert is_code or not re.search(r"<\w", prose), f"{room}.{name}.{part}: {prose}"


BLOCKS = TransformerConfig(dim=8, num_layers=1, num_heads=2)
FILLED: dict[str, dict[str, Any]] = {
    "Encoder": {"model": None, "tokenizer": None, "preprocess": None},
    "PeftConfig": {"kind": "lora"},
    "PreprocessConfig": {"image_size": 8},
    "TextConfig": {"transformer": BLOCKS},
    "TransformerConfig": {"dim": 8, "num_layers": 1, "num_heads": 2},
    "VisionConfig": {"transformer": BLOCKS, "image_size": 8, "patch_size": 4},
    "DecoderConfig": {
        "transformer": replace(BLOCKS, mask="causal"),
        "vocab_size": 9,
        "context_length": 8,
    },
}
"""What public configs want at least."""


def words() -> list[tuple[type, str]]:
    """Fields of public configs that take one of a few words."""
    found: list[tuple[type, str]] = []
    for room, names in LISTED.items():
        for cls in (getattr(importlib.import_module(room), name) for name in names):
            if isinstance(cls, type) and is_dataclass(cls):
                hints = get_type_hints(cls).items()
                found += [
                    (cls, name)
                    for name, hint in hints
                    if Literal in map(get_origin, (hint, *get_args(hint)))
                ]
    return found


@pytest.mark.parametrize(("cls", "field"), words(), ids=str)
def test_a_word_that_is_unknown_is_refused(cls: type, field: str):
    """A typo in a program would else be taken for the word that stands last: sgd for adamw."""
    values = FILLED.get(cls.__name__, {})
    cls(**values)
    word = ("typo",) if get_origin(get_type_hints(cls)[field]) is tuple else "typo"
    with pytest.raises(ValueError, match=f"{field} = 'typo' is unknown; use "):
        cls(**values | {field: word})


def test_there_are_such_words():
    assert len({cls for cls, _ in words()}) >= 9 and len(words()) > 20


def _tiny() -> Clip:
    vision = VisionConfig(image_size=8, patch_size=4, transformer=BLOCKS)
    text = TextConfig(context_length=8, transformer=BLOCKS)
    return Clip(ClipConfig(vision=vision, text=text, embed_dim=8))


def _optimizers(config: OptimConfig, prefix: str = "") -> object:
    model = _tiny()
    named = [(prefix + name, parameter) for name, parameter in model.named_parameters()]
    names = parameter_names(model)
    hidden = names.hidden_matrices
    return build_optimizers(named, config, no_decay=names.no_decay, hidden_matrices=hidden)


def _laid_out(**settings: Any) -> object:
    return parallelize(_tiny(), build_layout(ParallelConfig(), torch.device("cpu")), **settings)


def _judged(index_dir: str) -> object:
    source = ShardSource(str(debug_pairs().train))
    return evaluate_retrieval(Encoder(**FILLED["Encoder"]), data=source, index_dir=index_dir)


@pytest.mark.parametrize(
    ("called", "told"),
    [
        (lambda: _laid_out(precision="bf61"), 'precision = "bf61" is unknown; use fp32 or bf16'),
        (lambda: _laid_out(compile="auto"), "compile = 'auto' must be True or False"),
        (lambda: _optimizers(OptimConfig(layer_decay=0.9)), "layer_decay = 0.9 needs layer_ids"),
        (lambda: _optimizers(OptimConfig(kind="muon"), "module."), 'kind = "muon" has no effect'),
        (lambda: Encoder(**FILLED["Encoder"], batch_size=0), "batch_size = 0 must be at least 1"),
        (lambda: Encoder(**FILLED["Encoder"], workers=-1), "workers = -1 must be at least 0"),
        (lambda: _judged("i"), "index_dir = i has no effect: data is a source that is open"),
    ],
)
def test_what_would_be_passed_over_is_refused(called: Callable[[], object], told: str):
    with pytest.raises(UsageError, match=re.escape(told)):
        called()


def test_and_what_is_meant_is_taken():
    assert _optimizers(OptimConfig(kind="muon"))
