"""A trunk of texts where a tower has its embedding: ids to one token each."""

import torch
from torch import Tensor, nn

from mmtrain.models.trunks.building import build_as_around, seeded
from mmtrain.models.trunks.config import TransformersTrunk


class TextTrunk(nn.Module):
    """Runs the trunk, in eval mode in training too, see ImageTrunk."""

    def __init__(self, config: TransformersTrunk, *, dim: int) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        self.trunk = build_text_trunk(config, dim=dim)

    def train(self, mode: bool = True) -> "TextTrunk":
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] -> [B, 1, D]."""
        return self.trunk(tokens_BT)[:, None]

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights as whoever owns the trunk does."""
        with seeded(generator):
            fresh = build_text_trunk(self.config, dim=self.dim)
        self.trunk.load_state_dict(fresh.state_dict())


def build_text_trunk(config: TransformersTrunk, *, dim: int) -> nn.Module:
    """Ids [B, T] -> [B, D]."""
    from mmtrain.models.trunks.transformers_network import TransformersNetwork

    return build_as_around(lambda: TransformersNetwork(config, dim=dim)).eval()
