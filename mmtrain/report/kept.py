"""What a rank's share of a tower keeps for its backward, found by running it without memory.

The tower's own parts run on fake tensors, one block for all, cut as tensor parallelism cuts it:
fewer heads, a narrower feed-forward, and with sequence parallelism a share of the tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from mmtrain.models import ClipConfig, TextTower, VisionTower
from mmtrain.nn import Mask, TransformerBlock
from mmtrain.nn import attention as attention_module
from mmtrain.parallel.precision import Precision, apply_precision, autocast

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class KeptByTower:
    """Bytes that one microbatch keeps in a tower's parts on one rank."""

    embed: int
    block: int
    """Of each block."""
    head: int
    stream: int
    """The whole residual stream, which pipeline stages and tensor-parallel ranks exchange."""
    stream_padded: int
    """The same, its tokens padded to a multiple of the tensor-parallel ranks."""


def kept_by_towers(
    config: ClipConfig,
    *,
    rows: int,
    tp: int,
    sequence: bool,
    precision: Precision,
    fused_attention: bool,
) -> dict[str, KeptByTower]:
    """Both towers, by name.

    Args:
        config: the model.
        rows: of a microbatch on this rank; texts have their full context.
        tp: tensor-parallel ranks.
        sequence: whether norms and residuals hold a share of the tokens.
        precision: of the run.
        fused_attention: as on a GPU, whatever this machine's CPU would take.
    """
    size, length = config.vision.image_size, config.text.context_length
    table = dict(attention_module.PLAIN_UP_TO)
    if fused_attention:
        attention_module.PLAIN_UP_TO.clear()
    try:
        with FakeTensorMode():
            vision = VisionTower(_one_block(config.vision), embed_dim=config.embed_dim)
            text = TextTower(_one_block(config.text), embed_dim=config.embed_dim)
            images = torch.zeros(rows, 3, size, size, dtype=torch.uint8)
            tokens = torch.zeros(rows, length, dtype=torch.int64)
            length_B = torch.full((rows,), length)
            patches = None
            if config.vision.patch_dropout:
                patches = torch.zeros(rows, config.vision.num_kept, dtype=torch.int64)
            # FSDP's bf16 is computed with as if nothing else were stored.
            computed = "bf16-pure" if precision == "bf16-fsdp" else precision
            cut = _Cut(tp=tp, sequence=sequence and tp > 1, precision=computed)
            grid = (config.vision.grid_size, config.vision.grid_size)
            masked = config.text.transformer.mask == "full" and config.text.cuts_padding
            return {
                "vision": cut.tower(
                    vision,
                    lambda: vision.embed(images, patches),  # pyright: ignore[reportOptionalCall]
                    lambda x: vision.head(x),  # pyright: ignore[reportOptionalCall]
                    rope=vision.rope_table(grid, patches, _CPU),
                    key_length_B=None,
                ),
                "text": cut.tower(
                    text,
                    lambda: text.embed(tokens),  # pyright: ignore[reportOptionalCall]
                    lambda x: text.head(x, length_B),  # pyright: ignore[reportOptionalCall]
                    rope=text.rope_table(length, _CPU),
                    key_length_B=length_B if masked else None,
                ),
            }
    finally:
        attention_module.PLAIN_UP_TO.update(table)


def _one_block(config: Any) -> Any:
    return replace(config, transformer=replace(config.transformer, num_layers=1))


@dataclass(frozen=True, kw_only=True)
class _Cut:
    """How tensor parallelism cuts a tower."""

    tp: int
    sequence: bool
    precision: Precision

    def tower(
        self,
        tower: VisionTower | TextTower,
        embed: Callable[[], Tensor],
        head: Callable[[Tensor], Tensor],
        *,
        rope: Any,
        key_length_B: Tensor | None,
    ) -> KeptByTower:
        apply_precision(tower, self.precision, _CPU)
        weights = list(tower.parameters())
        stream, kept_embed = self._kept(embed, weights)
        _, kept_head = self._kept(lambda: head(stream.detach().requires_grad_()), weights)
        core = tower.config.transformer
        block = TransformerBlock(
            replace(
                core,
                num_heads=core.num_heads // self.tp,
                num_kv_heads=core.kv_heads // self.tp,
                head_dim=core.head_size,
                ff_dim=core.hidden_dim // self.tp,
            )
        )
        apply_precision(block, self.precision, _CPU)
        tokens = stream.size(1)
        padding = -tokens % self.tp if self.sequence else 0
        shape = (stream.size(0), (tokens + padding), stream.size(2))
        if self.sequence:
            shape = (shape[0], shape[1] // self.tp, shape[2])
            for part in (block.attention, block.feed_forward):
                part.forward = _gathered(part.forward, self.tp)
            if rope is not None:
                rope = tuple(nn.functional.pad(table, (0, 0, 0, padding)) for table in rope)
        share = torch.zeros(shape, dtype=stream.dtype).requires_grad_()
        mask = tower.transformer.build_mask(tokens, device=_CPU, key_length_B=key_length_B)
        if padding and not mask.causal:
            width = tokens + padding
            mask = Mask(allowed=torch.ones(1, width, width, dtype=torch.bool))
        _, kept_block = self._kept(
            lambda: block(share, mask=mask, rope=rope), list(block.parameters())
        )
        each = stream.size(0) * stream.size(2) * stream.element_size()
        return KeptByTower(
            embed=kept_embed,
            block=kept_block,
            head=kept_head,
            stream=each * tokens,
            stream_padded=each * (tokens + padding),
        )

    def _kept(self, run: Callable[[], Tensor], weights: list[nn.Parameter]) -> tuple[Tensor, int]:
        """Its output, and the bytes of what it keeps, weights apart."""
        with autocast(self.precision, _CPU), count_kept(weights) as kept:
            return run(), sum(storage.nbytes() for storage in kept.values())


@contextmanager
def count_kept(weights: list[nn.Parameter]) -> Iterator[dict[int, torch.UntypedStorage]]:
    """Within the context, gathers the storages that autograd keeps, `weights` apart."""
    own = {weight.untyped_storage()._cdata for weight in weights}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def _gathered(forward: Callable[..., Tensor], tp: int) -> Callable[..., Tensor]:
    """All tokens in, as if gathered; a share out, as if summed and scattered."""

    def run(x_BTD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = forward(torch.cat([x_BTD] * tp, dim=1), *args, **kwargs)
        return out[:, : x_BTD.size(1)].clone()

    return run
