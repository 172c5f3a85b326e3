"""What [loss] says before there is data or a model."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmtrain.data.config import DataConfig
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.streamed import open_image_text
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.loading.config import ModelConfig
from mmtrain.losses.config import SIGLIP_BIAS, STANDARD_LIMIT
from mmtrain.models import ClipConfig, TextConfig
from mmtrain.tasks.config import LossSection
from mmtrain.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class ContrastiveSections:
    """`Sections` of matching captions."""

    loss: LossSection
    """[loss]."""
    has_text = True
    has_projection = True
    starts_whole = False
    why_one_size = None

    @property
    def brings_tokenizer(self) -> bool:
        """Nothing does."""
        return False

    @property
    def image_tokens(self) -> int:
        """None."""
        return 0

    def resolve(self, model: ModelConfig) -> ModelConfig:
        """`loss.kind = "siglip"` needs a bias: where none is set, the logits start at SigLIP's
        published scale 10 and bias -10 (Zhai et al. 2023, arXiv:2303.15343, section 3.2).

        Raises:
            UsageError: the loss would not keep the logits' start, or not see it; or texts have no
                end for their tower to find.
        """
        _check_ends(model.text)
        if self.loss.kind == "siglip" and model.init_logit_bias is None:
            unset = model.init is None and model.init_logit_scale == ClipConfig.init_logit_scale
            scale = math.log(10.0) if unset else model.init_logit_scale
            model = replace(model, init_logit_bias=SIGLIP_BIAS, init_logit_scale=scale)
        if model.init is None:
            _check_logits(model, self.loss)
        return model

    def tokenizer(self, context_length: int) -> Tokenizer | None:
        """None: [model] brings what there is."""
        return None

    def sizes(self, data: DataConfig, tokenizer: Tokenizer) -> Mapping[str, Any]:
        """The data fix nothing in them."""
        return {}

    def open_data(self, data: DataConfig, **common: Any) -> ImageTextData:
        """Images with their captions."""
        opened = open_image_text(data, **common)
        opened.keeps_texts = True
        features = [term.features for term in self.loss.terms if term.features is not None]
        opened.refuse_unread_join(features=features)
        return opened

    def idle(self, data: DataConfig, train: TrainConfig) -> Iterator[tuple[str, str]]:
        """Positives without labels; a softmax over one pair, which is 1 whatever the features."""
        if self.loss.positives is not None and not _label_key(data):
            yield (
                f'loss.positives = "{self.loss.positives}"',
                "without data.label_key, which says what samples show the same; set it, or leave "
                "loss.positives out",
            )
        sizes = [(p.batch_size, f"train.phase[{n}]: ") for n, p in enumerate(train.phase)]
        for size, phase in sizes or [(None, "train.")]:
            number = train.batch_size if size is None else size
            if number == 1 and self.loss.kind == "clip" and self.loss.weight:
                yield (
                    'loss.kind = "clip"',
                    f"with {phase}batch_size = 1: a pair is compared with the others of its batch, "
                    "and there are none; use 2 or more",
                )

    def idle_notes(self, data: DataConfig) -> Iterator[str]:
        """Labels without positives."""
        if self.loss.positives is None and (label := _label_key(data)):
            yield f"{label} has no effect without loss.positives"

    def check_clip(self, source: Path) -> None:
        """It is one."""


def _label_key(data: DataConfig) -> str:
    """The first setting that names a label, with its value; empty where none does."""
    found = ((one.key, one.label_key) for one in data.sources if one.label_key)
    return next((f'{key}.label_key = "{value}"' for key, value in found), "")


def _check_ends(text: TextConfig) -> None:
    """Refuse a tower that looks for the end of texts without one: training has their lengths, and
    who uses the model later their ids alone."""
    looks = text.pool == "end" or text.cuts_padding
    if text.trunk is None and looks and text.end_token_id is None:
        raise UsageError(
            "tokenizer.add_eot = false leaves texts without the end token, which the text tower "
            'looks for; leave that key out, or set model.text.pool = "last"'
        )


def _check_logits(model: ModelConfig, loss: LossSection) -> None:
    """Refuse a start of the logits' scale and bias that the loss would not keep, or not see."""
    low, high = loss.scale_range(math.log(STANDARD_LIMIT))
    if not low <= model.init_logit_scale <= high:
        raise UsageError(
            f"model.init_logit_scale = {model.init_logit_scale:g} is the logarithm of what "
            f"multiplies the logits, and the first update would cut that into 1 to "
            f"{math.exp(high):.4g}; start within 0 and {high:.4g}, or set loss.max_logit_scale"
        )
    if loss.kind == "clip" and model.init_logit_bias is not None:
        raise UsageError(
            f'model.init_logit_bias = {model.init_logit_bias} has no effect with loss.kind = "clip"'
            ': softmax does not see a bias; set model.init_logit_bias = "none", or loss.kind = '
            '"siglip"'
        )
