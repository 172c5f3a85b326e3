"""The contrastive task: images and their captions brought together."""

from mmtrain.data.batch import ImageTextBatch
from mmtrain.losses.config import LossConfig
from mmtrain.models import Clip
from mmtrain.parallel import Layout
from mmtrain.tasks.draws import Draws
from mmtrain.tasks.logits import Logits
from mmtrain.tasks.objective import Objective
from mmtrain.tasks.terms.contrastive import ContrastiveTerm
from mmtrain.tasks.terms.term import Rows


def contrastive_objective(
    model: Clip, config: LossConfig, *, layout: Layout, seed: int, lora_dropout: bool = False
) -> Objective:
    """The contrastive loss.

    Args:
        model: its logits' scale and bias are taken over.
        config: the section [loss].
        layout: the mesh.
        seed: of every random choice.
        lora_dropout: the model's adapter drops features.

    Raises:
        ValueError: the loss needs a bias that the model has not.
    """
    towers = model.config
    draws = Draws(
        seed=seed, vision=towers.vision, text=towers.text.transformer, lora_dropout=lora_dropout
    )

    def rows(batch: ImageTextBatch) -> Rows:
        found = {"tokens_BT": batch.tokens_BT, "length_B": batch.text_length_B}
        return found | draws.rows(batch, batch.position_B)

    logits = Logits(model, config, device=layout.device)
    return Objective(
        [ContrastiveTerm(config, logits, layout=layout)],
        layout=layout,
        rows=rows,
        handed={"image": towers.embed_dim, "text": towers.embed_dim},
        logits=logits,
    )
