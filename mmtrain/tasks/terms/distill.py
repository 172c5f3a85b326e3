"""Distillation: what a trained model makes of the same images and texts is to be learnt."""

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from mmtrain.data.batch import ImageTextBatch
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.loading import load
from mmtrain.losses import affinity_loss, feature_loss_B
from mmtrain.models import Clip
from mmtrain.models.fingerprint import weights_fingerprint
from mmtrain.nn import sent
from mmtrain.nn.products import tf32_products
from mmtrain.parallel.mesh import Layout
from mmtrain.settings.decode import encode
from mmtrain.settings.paths import ModelText
from mmtrain.tasks.logits import Logits
from mmtrain.tasks.terms.term import BatchTerm, Comparison, Found, Outputs, Rows, RowTerm

_ROWS_AT_ONCE = 64
"""Of a teacher's forward."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Learn from a teacher: any model that mmtrain loads, of any size, tokenizer and width. It sees
    the batch's own crops, resized to its size, and the same captions. Or from features that it made
    before, which cost no forward: of whole images, whatever crop of one the student sees."""

    kind: Literal["distill"] = "distill"
    """Names the term."""
    weight: float = 1.0
    """What it counts; loss.weight is the contrastive loss's (MobileCLIP: lambda and 1 - lambda)."""
    teacher: ModelText | None = None
    """A run, an export, a folder in another tool's form, hf://OWNER/NAME or open_clip:NAME/TAG."""
    features: str | None = None
    """Instead: the name of a teacher's image features that data.join brings, such as `features` of
    a folder that `mmtrain embed` wrote; with target = "features"."""
    target: Literal["affinity", "features"] = "affinity"
    """affinity: the teacher's similarities of every image with every text of the batch (Vasu et al.
    2024, MobileCLIP, arXiv:2311.17049, Eq. 2 to 4); features: the teacher's own features, which
    must be as wide as model.embed_dim."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the teacher's products, whatever train.precision is; bf16 is torch's autocast (a ViT-B-32
    on a CPU that has such products: a third of the time, its cosines off by 1e-5)."""

    @property
    def wants_texts(self) -> bool:
        """Whether it reads the captions: a teacher has a tokenizer of its own."""
        return self.teacher is not None

    def __post_init__(self) -> None:
        if (self.teacher is None) == (self.features is None):
            raise ValueError(
                "distill learns from a teacher or from stored features: set either teacher or "
                "features"
            )
        if self.features is not None and self.target != "features":
            raise ValueError(
                f'features = "{self.features}" are of images alone, which have no affinities to '
                'captions; set target = "features", or name a teacher'
            )
        if self.features is not None and self.precision != "fp32":
            raise ValueError(
                f'precision = "{self.precision}" is of a teacher\'s products, and features = '
                f'"{self.features}" are made already; leave it out'
            )
        if self.weight <= 0:
            raise ValueError(f"weight = {self.weight} must be positive; or leave the term out")

    def comparisons(
        self, embed_dim: int, *, teacher_width: int | None = None
    ) -> tuple[Comparison, ...]:
        """Of affinities: the student's and, beside them, the teacher's."""
        if self.target == "features":
            return ()
        return (Comparison(width=embed_dim, blocks=5, teacher_width=teacher_width),)

    def build(self, found: Found) -> "AffinityTerm | FeatureTerm | StoredTerm":
        """The term, with its teacher.

        Raises:
            UsageError: there is no such model, or its features do not fit.
        """
        if self.teacher is None:
            return StoredTerm(found.name, weight=self.weight)
        teacher = Teacher(self.teacher, found, precision=self.precision)
        if self.target == "affinity":
            logits = found.contrastive.logits
            return AffinityTerm(teacher, logits, layout=found.layout, weight=self.weight)
        if teacher.embed_dim != found.embed_dim:
            raise UsageError(
                f'loss.terms: distill: target = "features" needs as many as the teacher has, '
                f"{teacher.embed_dim}, and model.embed_dim is {found.embed_dim}; use target = "
                '"affinity"'
            )
        return FeatureTerm(teacher, weight=self.weight)


class Teacher:
    """A frozen model, and its features of a batch as further rows of it.

    It never gets a gradient and is in no optimizer, average or checkpoint. Its weights are whole on
    every rank that has images; what it sees of a sample is what the student's first pass sees.

    Args:
        path: of the model.
        found: what the term is built beside.
        precision: of its products.

    Attributes:
        told: its key in the recipe; its path, and a fingerprint of its weights, architecture, image
            size and tokenizer.
    """

    def __init__(self, path: str, found: Found, *, precision: str) -> None:
        layout, self._precision = found.layout, precision
        model, preprocess, tokenizer = load(path, key="loss.terms: teacher")
        fingerprint = _fingerprint(model, preprocess.config.image_size, tokenizer)
        self.told = {f"{found.key}.teacher": (path, fingerprint)}
        self.embed_dim, self.layout = model.config.embed_dim, layout
        self.multiplier = model.logit_scale.detach().exp().item()
        self.image_size = preprocess.config.image_size
        self.image, self.text, self.valid = (
            f"{found.name}_{part}" for part in ("image", "text", "valid")
        )
        self._tokenizer: Tokenizer = tokenizer
        self._model: Clip | None = None
        if layout.is_first_stage:  # the others have no images
            self._model = model.to(layout.device).requires_grad_(False).eval()

    @torch.no_grad()
    def rows(self, batch: ImageTextBatch) -> Rows:
        """Its unit-norm features of the batch, on every pipeline stage."""
        shape = (batch.num_rows, self.embed_dim)
        device = self.layout.device
        features = [torch.zeros(shape, device=device) for _ in range(2)]
        if self._model is not None:
            cast = torch.autocast(device.type, torch.bfloat16, enabled=self._precision == "bf16")
            with cast, tf32_products(False):
                features = [x.contiguous() for x in self._encode(self._model, batch)]
        if (group := self.layout.group("pp")) is not None:
            for tensor in features:
                dist.broadcast(tensor, dist.get_global_rank(group, 0), group=group)
        image_BE, text_BE = features
        return {self.image: image_BE, self.text: text_BE, self.valid: batch.valid_B}

    def _encode(self, model: Clip, batch: ImageTextBatch) -> tuple[Tensor, Tensor]:
        tokens_BT, length_B = (
            sent(x, self.layout.device) for x in self._tokenizer.encode(batch.texts)
        )
        # As the student's: a text without any token counts one of padding.
        cut = model.text.config.cuts_padding
        width = max(1, tokens_BT.size(1)) if cut else self._tokenizer.context_length
        missing = width - tokens_BT.size(1)
        tokens_BT = F.pad(tokens_BT, (0, missing), value=self._tokenizer.pad_id)
        return teacher_features(
            model,
            images_BCHW=batch.images_BCHW,
            tokens_BT=tokens_BT,
            length_B=length_B.clamp(min=1),
            image_size=self.image_size,
        )


def teacher_features(
    model: Clip, *, images_BCHW: Tensor, tokens_BT: Tensor, length_B: Tensor, image_size: int
) -> tuple[Tensor, Tensor]:
    """A model's unit-norm features of uint8 images of any size and of texts, in fp32."""
    images = [
        model.encode_image(_resized(part, image_size)) for part in images_BCHW.split(_ROWS_AT_ONCE)
    ]
    texts = [
        model.encode_text(part, lengths)
        for part, lengths in zip(
            tokens_BT.split(_ROWS_AT_ONCE), length_B.split(_ROWS_AT_ONCE), strict=True
        )
    ]
    return torch.cat(images).float(), torch.cat(texts).float()


def _resized(images_BCHW: Tensor, image_size: int) -> Tensor:
    if images_BCHW.size(-1) == image_size:
        return images_BCHW
    resized = F.interpolate(
        images_BCHW.float(), (image_size, image_size), mode="bicubic", antialias=True
    )
    return resized.round().clamp(0, 255).to(torch.uint8)


def _fingerprint(model: Clip, image_size: int, tokenizer: Tokenizer) -> str:
    said = [weights_fingerprint(model), encode(model.config), image_size, tokenizer.fingerprint]
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()


class AffinityTerm(BatchTerm):
    """The teacher's softmax over the batch, by images and by texts.

    Args:
        teacher: gives its features and its own multiplier.
        logits: the student's multiplier.
        layout: the mesh; the batch is that of its data-parallel group.
        weight: what it counts.
    """

    kind = "distill"

    def __init__(self, teacher: Teacher, logits: Logits, *, layout: Layout, weight: float) -> None:
        self.teacher, self.logits, self.layout, self.weight = teacher, logits, layout, weight

    def teachers(self) -> dict[str, tuple[str, str]]:
        return self.teacher.told

    def rows(self, batch: ImageTextBatch) -> Rows:
        return self.teacher.rows(batch)

    def loss(self, outputs: Outputs, batch: ImageTextBatch, rows: Rows) -> Tensor:
        return affinity_loss(
            outputs["image"],
            outputs["text"],
            teacher_image_BE=rows[self.teacher.image],
            teacher_text_BE=rows[self.teacher.text],
            logit_scale=self.logits.multiplier(),
            teacher_logit_scale=self.teacher.multiplier,
            group=self.layout.group("dp"),
            valid_B=batch.valid_B,
            equal_rows=True,
            sum_loss=False,
        )


class FeatureTerm(RowTerm):
    """The squared distance of both features from the teacher's, mean over rows.

    Args:
        teacher: gives them.
        weight: what it counts.
    """

    kind = "distill"

    def __init__(self, teacher: Teacher, *, weight: float) -> None:
        self.teacher, self.weight = teacher, weight

    def teachers(self) -> dict[str, tuple[str, str]]:
        return self.teacher.told

    def rows(self, batch: ImageTextBatch) -> Rows:
        return self.teacher.rows(batch)

    def columns(self, outputs: Outputs, rows: Rows) -> Tensor:
        image_B = feature_loss_B(outputs["image"], rows[self.teacher.image])
        text_B = feature_loss_B(outputs["text"], rows[self.teacher.text])
        return ((image_B + text_B) * rows[self.teacher.valid])[:, None]

    def count(self, batch: ImageTextBatch) -> Tensor:
        return batch.valid_B.sum()


class StoredTerm(RowTerm):
    """The squared distance of the image features from stored ones, mean over the rows that have
    some: half of what `FeatureTerm` compares, whose other half are texts.

    Args:
        name: unlike that of every other term.
        weight: what it counts.
    """

    kind = "distill"

    def __init__(self, name: str, *, weight: float) -> None:
        self._image, self._known, self.weight = f"{name}_stored", f"{name}_known", weight

    def rows(self, batch: ImageTextBatch) -> Rows:
        assert batch.stored_BE is not None
        return {self._image: batch.stored_BE, self._known: _has_stored(batch)}

    def columns(self, outputs: Outputs, rows: Rows) -> Tensor:
        known_B = rows[self._known]
        # A row of zeros has no direction.
        stored_BE = rows[self._image].masked_fill(~known_B[:, None], 1.0)
        return (feature_loss_B(outputs["image"], stored_BE) * known_B)[:, None]

    def count(self, batch: ImageTextBatch) -> Tensor:
        return _has_stored(batch).sum()


def _has_stored(batch: ImageTextBatch) -> Tensor:
    assert batch.stored_BE is not None
    return batch.valid_B & (batch.stored_BE != 0).any(1)
