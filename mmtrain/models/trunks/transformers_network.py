"""Text encoders by transformers, as open_clip builds them. Imported only where there is one.

https://github.com/huggingface/transformers. Parameters have its names.
"""

import json
from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from mmtrain.models.trunks.config import TransformersTrunk


class TransformersNetwork(nn.Module):
    """The encoder, pooled, and two layers behind it where the config asks for them."""

    def __init__(self, config: TransformersTrunk, *, dim: int) -> None:
        super().__init__()
        settings = _settings(config)
        self.pool, self.pad_id = config.pool, settings.pad_token_id
        whole: Any = settings.is_encoder_decoder
        more = {} if whole else {"add_pooling_layer": False}
        encoder = AutoModel.from_config(settings, **more)
        self.transformer = encoder.encoder if whole else encoder
        self.proj = nn.Sequential()
        if config.head == "mlp":
            width = settings.hidden_size
            middle = (width + dim) // 2
            self.proj = nn.Sequential(
                nn.Linear(width, middle, bias=False), nn.GELU(), nn.Linear(middle, dim, bias=False)
            )

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Ids [B, T], padded by the encoder's own padding -> [B, D]."""
        real_BT = (tokens_BT != self.pad_id).long()
        x_BTD = self.transformer(input_ids=tokens_BT, attention_mask=real_BT).last_hidden_state
        if self.pool == "first":
            return self.proj(x_BTD[:, 0])
        sum_BD = (x_BTD * real_BT[:, :, None]).sum(1)
        return self.proj(sum_BD / real_BT.sum(1, keepdim=True).clamp(min=1))


def padding_of(config: TransformersTrunk) -> int | None:
    """The id that the encoder takes for padding."""
    return _settings(config).pad_token_id


def _settings(config: TransformersTrunk) -> Any:
    return AutoConfig.for_model(config.model_type, **json.loads(config.settings))
