"""The shape of a causal decoder."""

from dataclasses import dataclass
from typing import Literal

from mmtrain.limits import check_choices, check_counts
from mmtrain.nn import TransformerConfig
from mmtrain.nn.rope import RopeScaling


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A decoder: blocks, vocabulary, positions, head."""

    transformer: TransformerConfig
    """The blocks; transformer.mask is causal, prefix or block."""
    vocab_size: int
    """Entries of the token embedding and of the logits."""
    context_length: int
    """Tokens of a text at most."""
    positions: Literal["learned", "rope", "none"] = "rope"
    """How tokens know their place."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """How they are slowed down for long texts. None: they are not."""
    local_rope_theta: float | None = None
    """Base of the local layers' frequencies, which are never slowed down. None: the others'."""
    embed_scale: bool = False
    """Multiply token vectors by sqrt(dim), rounded to the weights' dtype (Gemma)."""
    final_norm: bool = True
    """A norm before the head; GPT-1 has none."""
    tied_head: bool = False
    """The logits' matrix is the token embedding."""
    logit_cap: float | None = None
    """Logits z become cap * tanh(z / cap) (arXiv:2408.00118). None: off."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "vocab_size", "context_length", most=1 << 30)
        blocks = self.transformer
        blocks.check_blocks()
        if self.logit_cap is not None and self.logit_cap <= 0:
            raise ValueError(f"logit_cap = {self.logit_cap} must be above 0")
        if self.local_rope_theta is not None and (
            blocks.local_window is None or self.positions != "rope"
        ):
            raise ValueError(
                f"local_rope_theta = {self.local_rope_theta} has no effect without rotary "
                "positions and transformer.local_window; leave it out"
            )
        if blocks.context_dim is not None:
            raise ValueError(
                f"transformer.context_dim = {blocks.context_dim}: a decoder has nothing to look "
                "at; leave it out"
            )
        if blocks.mask == "full":
            raise ValueError(
                'transformer.mask = "full" lets a decoder see what it must predict; use causal, '
                "prefix or block"
            )
        if self.positions == "rope" and blocks.head_size % 2:
            raise ValueError(
                f"transformer.head_dim = {blocks.head_size} must be even for rotary positions"
            )
