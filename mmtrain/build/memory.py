"""Refuses a run that the memory here cannot hold, before any of it is taken.

What is counted is less than a run takes: a recipe is refused where it cannot work, and one that
passes may still be too large by little. `mmtrain plan` says what a layout takes.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from mmtrain.build.main_memory import main_memory
from mmtrain.build.phase_recipes import PhaseRecipe, phase_recipes
from mmtrain.build.tasks import task_sections
from mmtrain.errors import UsageError
from mmtrain.models.parameters import LockConfig
from mmtrain.nn import Transformer, TransformerConfig
from mmtrain.parallel.mesh import Layout
from mmtrain.recipe import TrainRecipe


def check_memory(recipe: TrainRecipe, layout: Layout) -> None:
    """Compare what a run takes at least with what is there.

    Raises:
        UsageError: it is more; the line names the key that asks for most of it.
    """
    ranks = max(1, layout.size("pp") * layout.size("dp") * layout.size("tp"))
    here = main_memory()
    parts = dict(_parameters(recipe))
    total = sum(parts.values())
    largest = max(parts, key=lambda key: parts[key])
    # Every rank draws the whole model's initial weights in main memory, in fp32.
    _compare(largest, f"a model of {total:,} parameters", 4 * total, here, "main memory")
    device = layout.device
    on_gpu = device.type == "cuda"
    room = torch.cuda.get_device_properties(device).total_memory if on_gpu else here
    place = f"memory of {device}" if on_gpu else "main memory"
    is_whole = recipe.peft is None and recipe.lock == LockConfig()
    if is_whole and not recipe.parallel.cpu_offload:
        # Weights, gradients and at least one moment, in bf16 at least.
        bytes_each = 6 if recipe.train.precision == "bf16-pure" else 12
        told = f"training {total:,} parameters"
        _compare(largest, told, bytes_each * total // ranks, room, place)
    for phase in phase_recipes(recipe):
        _check_batch(phase, layout, room, place)


def _check_batch(phase: PhaseRecipe, layout: Layout, room: int, place: str) -> None:
    vision, train = phase.recipe.model.vision, phase.recipe.train
    rows = -(-train.batch_size // layout.size("dp"))
    pixels = 3 * vision.image_size**2
    key = phase.key("image_size" if pixels > rows else "batch_size")
    _compare(key, f"a batch of {rows:,} images", rows * pixels, room, place)
    kept = vision.num_kept + vision.num_prefix
    tokens = -(-rows // train.microbatches) * kept * vision.transformer.dim * 2
    key = phase.key("image_size" if kept > rows else "batch_size")
    told = f"a microbatch of {kept:,} tokens an image"
    _compare(key, told, tokens, room, place)


def _compare(key: str, told: str, wanted: int, room: int, place: str) -> None:
    if wanted > room:
        raise UsageError(
            f"{key} is too large: {told} asks for {wanted / 2**30:,.1f} GiB at least, and the "
            f"{place} is {room / 2**30:,.1f} GiB; make it smaller"
        )


def _parameters(recipe: TrainRecipe) -> Iterator[tuple[str, int]]:
    """The keys that ask for weights, and how many at least."""
    sections = task_sections(recipe)
    has_text = sections.has_text
    for path, config in _stacks(recipe, ""):
        if path.startswith("model.text.") and not has_text:
            continue
        with torch.device("meta"):
            block = Transformer(dataclasses.replace(config, num_layers=1, local_layers=None))
        size = sum(weight.numel() for weight in block.parameters())
        yield f"{path}.{_grows(config)}", config.num_layers * size
    vision, text = recipe.model.vision, recipe.model.text
    width, depth = vision.transformer.dim, text.transformer.dim
    if vision.trunk is None:
        yield "model.vision.patch_size", 3 * vision.patch_size**2 * width
    if vision.positions == "learned":
        yield "model.vision.image_size", vision.num_patches * width
    if has_text:
        yield "tokenizer.kind", text.vocab_size * depth
    if has_text and text.positions == "learned":
        yield "tokenizer.context_length", text.context_length * depth
    if sections.has_projection:
        yield "model.embed_dim", recipe.model.embed_dim * (width + depth)


def _grows(config: TransformerConfig) -> str:
    """The number that makes these blocks large."""
    if config.num_layers > 1000:
        return "num_layers"
    return "ff_dim" if config.hidden_dim > 8 * config.dim else "dim"


def _stacks(config: Any, path: str) -> Iterator[tuple[str, TransformerConfig]]:
    """Every stack of blocks below a config, by its key."""
    for field in dataclasses.fields(config):
        value, key = getattr(config, field.name), f"{path}.{field.name}".removeprefix(".")
        if isinstance(value, TransformerConfig):
            yield key, value
        elif dataclasses.is_dataclass(value):
            yield from _stacks(value, key)
