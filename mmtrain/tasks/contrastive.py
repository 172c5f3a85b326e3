"""The contrastive task: images and their captions brought together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmtrain.data.batch import ImageTextBatch
from mmtrain.data.members import StoredFeatures
from mmtrain.data.phases import Phase
from mmtrain.data.streamed import open_image_text
from mmtrain.errors import UsageError
from mmtrain.eval import Encoder
from mmtrain.interop.timm import read_timm_tower
from mmtrain.loading import save_model
from mmtrain.loading.start import contradictions, loss_lines, start_lines, tower_folder
from mmtrain.models import Clip, ClipConfig
from mmtrain.models.transfer import copy_image_tower, copy_weights
from mmtrain.parallel.mesh import Layout
from mmtrain.tasks.config import LossSection
from mmtrain.tasks.draws import Draws
from mmtrain.tasks.logits import Logits
from mmtrain.tasks.objective import Objective
from mmtrain.tasks.source_loss import SourceLoss
from mmtrain.tasks.task import Shared, copy_start
from mmtrain.tasks.terms.contrastive import ContrastiveTerm
from mmtrain.tasks.terms.term import Found, Rows, Term


class ContrastiveTask:
    """Two towers that give an image and its text like features.

    Args:
        shared: what all tasks find.
        clip: the towers, resolved.
        loss: the section [loss].
        init: model.init.
        vision_init: model.vision_init.

    Raises:
        UsageError: weights that it starts from do not fit the towers, or the data cannot be had.
    """

    judges: Literal["towers"] = "towers"

    def __init__(
        self,
        shared: Shared,
        *,
        clip: ClipConfig,
        loss: LossSection,
        init: str | None,
        vision_init: str | None,
    ) -> None:
        self._shared, self._clip, self._loss = shared, clip, loss
        self._vision_init, self.base = vision_init, init or ""
        self.model = Clip(clip).init_weights(shared.seed)
        if (start := shared.start) is not None:
            copy_start(start.key, lambda: copy_weights(start.model, self.model))
        if vision_init is not None and not shared.begun:
            tower = read_timm_tower(tower_folder(vision_init))
            copy = partial(copy_image_tower, *tower, self.model)
            copy_start(f"model.vision_init = {vision_init}", copy)
        # torch's pipeline stages fix their shapes at the first step; some towers see their padding.
        fixed = shared.layout.size("pp") > 1 or not clip.text.cuts_padding
        self.data = open_image_text(
            shared.data,
            fixed_length=shared.tokenizer.context_length if fixed else None,
            **shared.batches(),
        )
        self.data.keeps_texts = any(term.wants_texts for term in loss.terms)
        self._stored = [
            (f'loss.terms[{number}]: features = "{term.features}"', term.features)
            for number, term in enumerate(loss.terms)
            if term.features is not None
        ]
        self._keep_stored()
        self.data.refuse_unread_join(features={name for _, name in self._stored})

    def _keep_stored(self) -> None:
        if len({name for _, name in self._stored}) > 1:
            keys = " and ".join(key for key, _ in self._stored)
            raise UsageError(f"{keys}: a batch has the stored features of one name; keep one")
        for key, name in self._stored[:1]:
            self.data.keep_stored(StoredFeatures(name=name, width=self._clip.embed_dim), key=key)

    def sections(self) -> Mapping[str, Any]:
        """The data fix nothing in them."""
        return {}

    def objective(self, *, lora_dropout: bool) -> Objective:
        """The contrastive loss and the terms beside it."""
        return contrastive_objective(
            self.model,
            self._loss,
            layout=self._shared.layout,
            seed=self._shared.seed,
            lora_dropout=lora_dropout,
            phases=self._shared.phases,
            sources=[one.name for one in self._shared.data.mixture],
        )

    def learning_rates(self) -> Mapping[str, float]:
        """All have optim.lr."""
        return {}

    def check_adapted(self) -> None:
        """A whole model is adapted; nothing of it is as it was drawn."""

    def notes(self) -> tuple[str, ...]:
        """What is compared with stored features, and where the recipe contradicts its start."""
        stored = tuple(
            f"{key} are of whole images, while the model sees crops (data.augment)"
            for key, _ in self._stored
        )
        return stored + self._start_notes()

    def _start_notes(self) -> tuple[str, ...]:
        if (folder := self._vision_init) is not None and not self._shared.begun:
            key = f"model.vision_init = {folder}"
            theirs, _ = read_timm_tower(tower_folder(folder))
            ours = replace(self._clip.vision, projection=False, projection_bias=False)
            return tuple(contradictions(ours, theirs, section="model.vision", key=key))
        if (start := self._shared.start) is None:
            return ()
        return (
            *start_lines(
                self._clip,
                start,
                tokenizer=self._shared.tokenizer,
                preprocess=self._shared.preprocess,
            ),
            *loss_lines(
                start,
                kind=self._loss.kind,
                limit=self._loss.max_logit_scale,
                trains=self.model.logit_scale.requires_grad,
            ),
        )

    def check_evaluation(self, config: Any) -> None:
        """Two towers have whatever an evaluation of towers asks for."""

    def evaluator(self, weights: Mapping[str, Tensor]) -> Encoder:
        """The towers with these weights."""
        with torch.device("meta"):
            model = Clip(self._clip)
        model.load_state_dict(weights, assign=True)
        return Encoder(model=model.eval(), **self._shared.evaluator())

    def export(self, folder: Path, evaluator: Encoder) -> None:
        """Write the towers in our form."""
        assert isinstance(evaluator.model, Clip)
        save_model(
            folder,
            model=evaluator.model,
            tokenizer=self._shared.tokenizer,
            preprocess=self._shared.preprocess,
        )

    def keep(self, folder: Path) -> None:
        """Nothing."""

    def looks(self, evaluator: Encoder) -> Encoder:
        """Both towers' maps; the other ranks are not there."""
        return replace(evaluator, group=None)


def contrastive_objective(
    model: Clip,
    config: LossSection,
    *,
    layout: Layout,
    seed: int,
    lora_dropout: bool = False,
    phases: Sequence[Phase] = (),
    sources: Sequence[str] = (),
) -> Objective:
    """The contrastive loss and the terms beside it.

    Args:
        model: its logits' scale and bias are taken over.
        config: the section [loss].
        layout: the mesh.
        seed: of every random choice.
        lora_dropout: the model's adapter drops features.
        phases: of the run.
        sources: names of a mixture's, whose losses are told apart.

    Raises:
        ValueError: the loss needs a bias that the model has not.
        UsageError: a term does not fit the model, or its teacher cannot be had.
    """
    towers = model.config
    draws = Draws(
        seed=seed,
        vision=towers.vision,
        phases=phases,
        text=towers.text.transformer,
        lora_dropout=lora_dropout,
    )

    def rows(batch: ImageTextBatch) -> Rows:
        found = {"tokens_BT": batch.tokens_BT, "length_B": batch.text_length_B}
        return found | draws.rows(batch, batch.position_B)

    logits = Logits(model, config, device=layout.device)
    contrastive = ContrastiveTerm(config, logits, layout=layout, weight=config.weight)
    terms: list[Term] = [contrastive]
    for number, term in enumerate(config.terms):
        found = Found(
            name=f"term{number}",
            key=f"loss.terms[{number}]",
            contrastive=contrastive,
            embed_dim=towers.embed_dim,
            layout=layout,
        )
        terms.append(term.build(found))
    return Objective(
        terms,
        layout=layout,
        rows=rows,
        handed={"image": towers.embed_dim, "text": towers.embed_dim},
        logits=logits,
        source_loss=SourceLoss(contrastive, sources, layout) if sources else None,
    )
