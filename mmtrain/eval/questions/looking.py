"""Where a model looks when one question is asked of it, whichever way it reads questions."""

from collections.abc import Sequence

import torch
from PIL import Image

from mmtrain.data.dialogues.dialogue import Turn
from mmtrain.data.images.tiles import Pieces
from mmtrain.data.images.transforms import eval_transform
from mmtrain.data.questions.batches import TextForm
from mmtrain.eval.look.answers import Looked, look, look_in_dialogue
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.reading import dialogue_of
from mmtrain.models.dialogues import Told
from mmtrain.models.vqa_stage import Asked

WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)


@torch.no_grad()
def look_at(
    answerer: Answerer, pieces: Pieces, text: str, *, earlier: Sequence[Turn] = ()
) -> Looked:
    """Where the answering token looks, and the dictionary entries that fire.

    Args:
        answerer: the model.
        pieces: of one image.
        text: the question.
        earlier: the turns before, of a model that reads dialogues.

    Raises:
        UsageError: it cannot be asked so.
    """
    if answerer.model.config.reads_dialogues:
        (count,) = pieces.counts
        one = dialogue_of(answerer, text, count, earlier=earlier)
        tokens_1T, image_1T = (
            torch.tensor([row], device=answerer.device) for row in (one.ids, one.image)
        )
        told = Told(tokens_BT=tokens_1T, image_BT=image_1T)
        return look_in_dialogue(answerer.model, pieces, told)
    tokens_1T, length_1, _ = TextForm(tokenizer=answerer.tokenizer).encode([(text, "")])
    tokens_1T, length_1 = tokens_1T.to(answerer.device), length_1.to(answerer.device)
    asked = Asked(tokens_QT=tokens_1T, question_length_Q=length_1, length_Q=length_1)
    return look(answerer.model, pieces.images_NCHW, asked, head=answerer.chosen_head)


def region_seen(answerer: Answerer, image: Image.Image) -> tuple[float, float, float, float]:
    """Left, top, width and height of what the model sees of an image, as parts of the image's own;
    tiles are cut of all of it."""
    if answerer.model.config.tiles is not None:
        return WHOLE_IMAGE
    return eval_transform(answerer.preprocess).seen_region(*image.size)
