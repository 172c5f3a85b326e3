"""Where a VQA model looks when it answers: attention weights of its last layer, and CATT's entries.

Attention weights say what was read, not what caused the answer; the probes beside a result tell
how much the image counts at all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.eval.look.attention_shares import attention_shares
from mmtrain.models.vqa import Asked, Head, Vqa
from mmtrain.nn import Attention
from mmtrain.nn.front_door import FrontDoor


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What one question made a model look at."""

    grid: Tensor
    """[rows, columns] over the connector's tokens, summing to 1."""
    entries: dict[str, list[tuple[int, float]]]
    """CATT: by place, the dictionary entries with the largest cross-sample weights."""


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
        ValueError: the model has no such head, or the connector's tokens are learned queries,
            which have no place in the image.
    """
    if model.config.connector.kind == "queries":
        raise ValueError('connector.kind = "queries": its tokens have no place in the image')
    kept: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept[name] = module, args, kwargs

        return hook

    answering = model.classify if head == "classify" else model.generate
    if answering is None:
        raise ValueError(f"head = {head}: the model has none")
    last = _answering_attention(model, head)
    hooks = [last.register_forward_pre_hook(keep("last"), with_kwargs=True)]
    # Each head has dictionaries of its own under the same places' names.
    doors = {name: door for name, door in answering.named_modules() if isinstance(door, FrontDoor)}
    hooks += [
        door.register_forward_pre_hook(keep(n), with_kwargs=True) for n, door in doors.items()
    ]
    try:
        model.logits(images_BCHW, asked)
    finally:
        for hook in hooks:
            hook.remove()
    module, args, kwargs = kept["last"]
    assert isinstance(module, Attention)
    mask, rope = kwargs["mask"], kwargs.get("rope")
    share_TS = attention_shares(module, *args, mask=mask, rope=rope)[0]
    end = int(asked.question_length_Q[0]) - 1
    vision = model.clip.vision
    cut = model.config.connector.factor if model.config.connector.kind == "pixel_shuffle" else 1
    side = vision.grid_size // cut
    if head == "generate":  # its tokens follow the image's
        end += side**2
    map_P = share_TS[end, : side**2]
    entries = {}
    for name, door in doors.items():
        fired_M = door.cross_sample_weights(kept[name][1][0])[0].mean(0)
        top = fired_M.topk(min(num_entries, fired_M.numel()))
        place = "question" if name.endswith("question") else "image"
        entries[place] = list(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    map_P = map_P / map_P.sum().clamp(min=torch.finfo(map_P.dtype).tiny)
    return Looked(grid=map_P.unflatten(0, (side, side)), entries=entries)


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
