"""Where a VQA model looks when it answers: attention weights of its last layer, and CATT's entries.

Attention weights say what was read, not what caused the answer; the probes beside a result tell
how much the image counts at all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.data.images.tiles import WHOLE, Pieces
from mmtrain.eval.look.attention_shares import attention_shares
from mmtrain.models.dialogues import DialogueGenerator, Told
from mmtrain.models.vqa import Head, Vqa
from mmtrain.models.vqa_stage import Asked
from mmtrain.nn import Attention
from mmtrain.nn.front_door import FrontDoor

NO_PLACE = 'connector.kind = "queries": its tokens have no place in the image'
"""Why there is no map of such a model."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What one question made a model look at."""

    grid: Tensor | None
    """[rows, columns] over the connector's tokens, summing to 1. None: `NO_PLACE`."""
    entries: dict[str, list[tuple[int, float]]]
    """CATT: by place, the dictionary entries with the largest cross-sample weights; of the vision
    tower, those behind its last block."""


@torch.no_grad()
def look(
    model: Vqa,
    images_BCHW: Tensor,
    asked: Asked,
    *,
    head: Head,
    num_entries: int = 5,
) -> Looked:
    """Where the answering token of one question about one image looks.

    Args:
        model: in eval mode.
        images_BCHW: one image.
        asked: one question, without an answer.
        head: which one answers; map and entries are its own, whatever other head there is.
        num_entries: of each dictionary.

    Raises:
        ValueError: the model has no such head.
    """
    with _kept_inputs(model, head) as kept:
        model.logits(images_BCHW, asked)
    entries = kept.entries(num_entries)
    side = _tokens_per_side(model)
    if side is None:
        return Looked(grid=None, entries=entries)
    end, first = int(asked.question_length_Q[0]) - 1, 0
    if head == "generate":  # its tokens follow the image's, and these the learned ones
        assert model.generate is not None
        first = model.generate.num_learned
        end += first + side**2
    map_P = kept.shares()[end, first : first + side**2]
    return Looked(grid=_summing_to_one(map_P.unflatten(0, (side, side))), entries=entries)


@torch.no_grad()
def look_in_dialogue(model: Vqa, pieces: Pieces, told: Told, *, num_entries: int = 5) -> Looked:
    """Where the token that begins the answer looks: over the tiles of its one image side by side,
    what the thumbnail's tokens take shared out over what each shows.

    Args:
        model: in eval mode; it reads dialogues.
        pieces: of one image.
        told: one dialogue, up to where the answer begins, with that image.
        num_entries: of each dictionary.
    """
    generator = model.generate
    assert isinstance(generator, DialogueGenerator) and len(pieces.counts) == 1
    with _kept_inputs(model, "generate") as kept:
        generator(model.vision(pieces.images_NCHW), pieces.place_N2, told)
    entries = kept.entries(num_entries)
    side = _tokens_per_side(model)
    if side is None:
        return Looked(grid=None, entries=entries)
    share_NP = kept.shares()[-1][told.image_BT[0]].unflatten(0, (-1, side**2))
    grid = _laid_out(share_NP.unflatten(1, (side, side)), pieces.place_N2)
    return Looked(grid=_summing_to_one(grid), entries=entries)


def _laid_out(share_NSS: Tensor, place_N2: Tensor) -> Tensor:
    """The maps of an image's pieces as one of the image."""
    side = share_NSS.size(1)
    rows, columns = (int(most) + 1 for most in place_N2.clamp(min=0).amax(0))
    grid = share_NSS.new_zeros(rows * side, columns * side)
    for share_SS, (row, column) in zip(share_NSS, place_N2.tolist(), strict=True):
        if row == WHOLE:
            grid += share_SS.repeat_interleave(rows, 0).repeat_interleave(columns, 1) / (
                rows * columns
            )
        else:
            grid[row * side :, column * side :][:side, :side] += share_SS
    return grid


class _Kept:
    """What the modules that show where a model looks were called with."""

    def __init__(self, last: Attention, doors: dict[str, FrontDoor]) -> None:
        self._last, self._doors = last, doors
        self.inputs: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def shares(self) -> Tensor:
        """[T, S], how much of each token every token of the first row takes in."""
        inputs, named = self.inputs[self._last]
        mask, rope, before = named["mask"], named.get("rope"), named.get("cache")
        shares_TS = attention_shares(self._last, *inputs, mask=mask, rope=rope, before=before)[0]
        # A learned prefix takes its share and is no token.
        return shares_TS if before is None else shares_TS[:, -shares_TS.size(0) :]

    def entries(self, num_entries: int) -> dict[str, list[tuple[int, float]]]:
        """By place, the entries that fired most, the mean over an image's tokens."""
        found: dict[str, list[tuple[int, float]]] = {}
        for name, door in self._doors.items():
            fired_M = door.cross_sample_weights(self.inputs[door][0][0]).flatten(0, 1).mean(0)
            top = fired_M.topk(min(num_entries, fired_M.numel()))
            found[name] = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
        return found


@contextmanager
def _kept_inputs(model: Vqa, head: Head) -> Iterator[_Kept]:
    """Keep what a head's last attention and its front doors are called with."""
    answering = model.classify if head == "classify" else model.generate
    if answering is None:
        raise ValueError(f"head = {head}: the model has none")
    # Each head has dictionaries of its own under the same places' names, the tower has one.
    doors = {
        "question" if name.endswith("question") else "image": door
        for name, door in answering.named_modules()
        if isinstance(door, FrontDoor)
    }
    if within := [part for part in model.vision.modules() if isinstance(part, FrontDoor)]:
        doors["vision"] = within[-1]
    last = _answering_attention(model, head)
    kept = _Kept(last, doors)

    def keep(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        kept.inputs[module] = inputs, named

    hooks = [
        module.register_forward_pre_hook(keep, with_kwargs=True)
        for module in (last, *doors.values())
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _tokens_per_side(model: Vqa) -> int | None:
    """Of an image, or of a piece of one; None: they have no place in it."""
    connector = model.config.connector
    if connector.kind == "queries":
        return None
    cut = connector.factor if connector.kind == "pixel_shuffle" else 1
    return model.clip.vision.grid_size // cut


def _summing_to_one(grid: Tensor) -> Tensor:
    return grid / grid.sum().clamp(min=torch.finfo(grid.dtype).tiny)


def _answering_attention(model: Vqa, head: Head) -> Attention:
    if head == "classify":
        assert model.classify is not None
        block = list(model.classify.fusion.blocks.values())[-1]
        attention = block.cross_attention
    else:
        assert model.generate is not None
        decoder = model.generate.decoder.transformer
        # A window that ends behind the image would show nothing of it.
        wide = [name for name in decoder.blocks if not decoder.config.is_local(int(name))]
        attention = decoder.blocks[(wide or list(decoder.blocks))[-1]].attention
    assert isinstance(attention, Attention)
    return attention
