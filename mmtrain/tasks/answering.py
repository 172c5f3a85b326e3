"""The task of answering: questions about images, their answers chosen or written."""

from mmtrain.data.questions.batches import VqaBatch
from mmtrain.losses.config import AnswerLossConfig
from mmtrain.losses.vocabulary import VocabularyShares
from mmtrain.models.vqa import Vqa
from mmtrain.parallel import Layout
from mmtrain.tasks.draws import Draws, question_positions
from mmtrain.tasks.objective import Objective
from mmtrain.tasks.terms.answers import ChoiceTerm, WritingTerm
from mmtrain.tasks.terms.term import Rows, Term


def answer_objective(
    model: Vqa, config: AnswerLossConfig, *, layout: Layout, seed: int, lora_dropout: bool = False
) -> Objective:
    """A term for each head of the model.

    Args:
        model: its heads.
        config: the section [vqa.loss].
        layout: the mesh.
        seed: of every random choice.
        lora_dropout: the model's adapter drops features.
    """
    draws = Draws(
        seed=seed,
        vision=model.clip.vision,
        text=model.clip.text.transformer,
        text_rows="text_keep_QL2",
        purposes=("vision_keep_BL2", "text_keep_QL2"),
        lora_dropout=lora_dropout,
    )

    def rows(batch: VqaBatch) -> Rows:
        found = {
            "tokens_QT": batch.tokens_QT,
            "question_length_Q": batch.question_length_Q,
            "length_Q": batch.length_Q,
            "answer_id_QK": batch.answer_id_QK,
            "answer_score_QK": batch.answer_score_QK,
            "valid_Q": batch.valid_Q,
        }
        position_Q = question_positions(batch.position_B, batch.valid_Q.size(0))
        return found | draws.rows(batch, position_Q)

    terms: list[Term] = []
    if model.config.classify is not None:
        terms.append(ChoiceTerm(config.classify))
    if (generate := model.config.generate) is not None:
        shares = None
        if (group := layout.group("tp")) is not None:
            assert generate.vocab_size is not None
            shares = VocabularyShares(group=group, vocab_size=generate.vocab_size)
        terms.append(WritingTerm(shares, weight=config.generate_weight if terms else 1.0))
    return Objective(terms, layout=layout, rows=rows)
