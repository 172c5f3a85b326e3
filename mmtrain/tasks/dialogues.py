"""The task of dialogues: whole conversations about images, the assistant's words to be learnt."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch

from mmtrain.data.dialogues.batches import DialogueBatch, DialogueData
from mmtrain.data.numbered import NumberedData
from mmtrain.data.phases import Phase
from mmtrain.errors import UsageError
from mmtrain.losses.vocabulary import VocabularyShares
from mmtrain.models import ClipConfig
from mmtrain.models.vqa import Vqa
from mmtrain.nn import HostLengths, Ragged, sent
from mmtrain.parallel.mesh import Layout
from mmtrain.tasks.answering import AnsweringTask
from mmtrain.tasks.answering_sections import open_dialogue_data
from mmtrain.tasks.config import VqaSection
from mmtrain.tasks.draws import Draws
from mmtrain.tasks.objective import Objective
from mmtrain.tasks.task import Shared
from mmtrain.tasks.terms.dialogues import DialogueTerm
from mmtrain.tasks.terms.term import Rows

_NOTHING = (
    "no dialogue of a batch ({key} is the first) has a token to learn; raise "
    "vqa.dialogues.max_length or mend the data"
)


class DialogueTask(AnsweringTask):
    """A vision tower and a decoder that goes on with dialogues; a question is one of one turn.

    Arguments and what is raised as those of all answering.
    """

    def __init__(
        self, shared: Shared, *, clip: ClipConfig, section: VqaSection, init: str | None
    ) -> None:
        super().__init__(shared, clip=clip, section=section, init=init)
        self.model.packs = section.dialogues is not None and section.dialogues.pack

    def _data_of(self, section: VqaSection) -> Callable[..., NumberedData[Any]]:
        shared, vision = self._shared, self._clip.vision
        _refuse_pipeline(shared.layout)
        for number, phase in enumerate((None, *shared.phases)):
            rate = vision.patch_dropout if phase is None else phase.patch_dropout
            if rate:
                key = "model.vision" if phase is None else f"train.phase[{number - 1}]"
                raise UsageError(
                    f"{key}.patch_dropout = {rate} leaves out tokens of an image, for each of "
                    "which a dialogue keeps a place; leave it out beside [vqa.dialogues]"
                )
        return partial(open_dialogue_data, shared.data, section, vision)

    @torch.no_grad()
    def _look_at(self, batch: DialogueBatch) -> None:
        if self.model.generate is not None and sum(batch.num_pieces):
            self.model.generate.image_tokens(self.model.vision(batch.images_BCHW))

    def _text_length(self) -> int:
        assert isinstance(self.data, DialogueData)
        return self.data.dialogues.max_length

    def objective(self, *, lora_dropout: bool) -> Objective:
        """What the assistant says."""
        if lora_dropout:
            raise UsageError(
                "peft.dropout draws what the terms do not see for each row of a batch, and images "
                "come in pieces beside [vqa.dialogues]; set peft.dropout = 0"
            )
        shared = self._shared
        return dialogue_objective(
            self.model, layout=shared.layout, seed=shared.seed, phases=shared.phases
        )


def _refuse_pipeline(layout: Layout) -> None:
    if (size := layout.size("pp")) > 1:
        raise UsageError(
            f"parallel.pp = {size} wants rows of one shape, and dialogues have images and lengths "
            "of their own; use parallel.dp_shard or parallel.tp beside [vqa.dialogues]"
        )


def dialogue_objective(
    model: Vqa, *, layout: Layout, seed: int, phases: Sequence[Phase] = ()
) -> Objective:
    """One term: what the assistant says.

    Args:
        model: reads dialogues.
        layout: the mesh.
        seed: of every random choice.
        phases: of the run.
    """
    draws = Draws(
        seed=seed, vision=model.clip.vision, phases=phases, text=model.clip.text.transformer
    )

    def pieces(batch: DialogueBatch) -> Ragged:
        return Ragged(batch.images_BCHW, batch.num_pieces)

    def rows(batch: DialogueBatch) -> Rows:
        drawn = draws.rows(batch, batch.position_B)
        found = {
            "tokens_BT": batch.tokens_BT,
            "image_BT": batch.image_BT,
            "trained_BT": batch.trained_BT,
            "length_B": batch.length_B,
            "valid_B": batch.valid_B,
        }
        ragged: dict[str, Any] = {
            "place_N2": Ragged(batch.place_N2, batch.num_pieces),
            "host_trained": HostLengths(torch.tensor(batch.num_trained)),
        }
        if (keep_BL2 := drawn.get("vision_keep_BL2")) is not None:
            # All pieces of a dialogue share its draws.
            counts_B = sent(torch.tensor(batch.num_pieces), keep_BL2.device)
            num = sum(batch.num_pieces)
            keep_NL2 = keep_BL2.repeat_interleave(counts_B, dim=0, output_size=num)
            ragged["keep_NL2"] = Ragged(keep_NL2, batch.num_pieces)
        return found | cast(Rows, ragged)

    generate = model.config.generate
    assert generate is not None and generate.vocab_size is not None, "it goes on with dialogues"
    group = layout.group("tp")
    shares = group and VocabularyShares(group=group, vocab_size=generate.vocab_size)
    return Objective(
        [DialogueTerm(shares)], layout=layout, rows=rows, images=pieces, nothing=_NOTHING
    )
