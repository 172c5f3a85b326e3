"""The shape of a causal decoder."""

from dataclasses import dataclass
from typing import Literal

from mmtrain.limits import check_counts
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
    embed_scale: bool = False
    """Multiply token vectors by sqrt(dim), rounded to the weights' dtype (Gemma)."""
    final_norm: bool = True
    """A norm before the head; GPT-1 has none."""
    tied_head: bool = False
    """The logits' matrix is the token embedding."""

    def __post_init__(self) -> None:
        check_counts(self, "vocab_size", "context_length", most=1 << 30)
        blocks = self.transformer
        if blocks.mask == "full":
            raise ValueError(
                'transformer.mask = "full" lets a decoder see what it must predict; use causal, '
                "prefix or block"
            )
        if self.positions == "rope" and blocks.head_size % 2:
            raise ValueError(
                f"transformer.head_dim = {blocks.head_size} must be even for rotary positions"
            )
