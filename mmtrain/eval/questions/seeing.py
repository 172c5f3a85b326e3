"""Pictures as the head that answers takes them: encoded once, whatever is asked of them."""

from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from mmtrain.data.images.tiles import Pieces
from mmtrain.data.images.transforms import eval_transform
from mmtrain.eval.forward_size import FIXED_BATCH, filled_up
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.samples import cut_image
from mmtrain.models.dialogues import DialogueGenerator
from mmtrain.nn import DecoderCache
from mmtrain.parallel.precision import autocast


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Images of which questions are asked."""

    image_NTD: Tensor
    """What the tower made of their pieces."""
    token_NPD: Tensor
    """What the head that answers made of that."""
    counts: tuple[int, ...]
    """Pieces of each image."""
    is_fixed: bool
    """Whether forwards are of fixed shapes, so that no answer depends on what else is asked."""
    begun: dict[tuple[int, tuple[int, ...]], tuple[DecoderCache, int]] = field(default_factory=dict)
    """Where the decoder has read it: the cache and the row of an image, and of the ids of what
    stands before its end."""

    def first_piece(self, image: int) -> int:
        """Of an image."""
        return sum(self.counts[:image])


def pieces_of(answerer: Answerer, picture: Image.Image) -> Pieces:
    """What the model sees of a picture, on its device."""
    tiles, device = answerer.model.config.tiles, answerer.device
    if tiles is None:
        return Pieces.whole(eval_transform(answerer.preprocess)(picture)[None].to(device))
    pieces_PCHW, place_P2 = cut_image(picture, answerer.preprocess, tiles)
    return Pieces.joined([(pieces_PCHW.to(device), place_P2.to(device))])


def see(answerer: Answerer, picture: Image.Image) -> Seen:
    """One picture, to be asked about one question after another."""
    return see_pieces(answerer, pieces_of(answerer, picture), is_fixed=False)


@torch.no_grad()
def see_pieces(answerer: Answerer, pieces: Pieces, *, is_fixed: bool) -> Seen:
    """Images whose pieces are on the model's device.

    Args:
        answerer: the model.
        pieces: of the images.
        is_fixed: as `Seen` has it.
    """
    num = len(pieces.images_NCHW)
    size = FIXED_BATCH if is_fixed else num
    seen: list[tuple[Tensor, Tensor]] = []
    for at in range(0, num, size):
        some = range(at, min(at + size, num))
        index = torch.tensor(filled_up(some, size), device=pieces.images_NCHW.device)
        with autocast(answerer.precision, answerer.device):
            image_NTD = answerer.fused.vision(pieces.images_NCHW[index])
            token_NPD = _head_tokens(answerer, image_NTD, pieces.place_N2[index])
        seen.append((image_NTD[: len(some)], token_NPD[: len(some)]))
    image_NTD, token_NPD = (torch.cat(parts) for parts in zip(*seen, strict=True))
    return Seen(image_NTD=image_NTD, token_NPD=token_NPD, counts=pieces.counts, is_fixed=is_fixed)


def _head_tokens(answerer: Answerer, image_NTD: Tensor, place_N2: Tensor) -> Tensor:
    model = answerer.fused
    if answerer.chosen_head == "classify":
        assert model.classify is not None
        return model.classify.image_tokens(image_NTD)
    assert model.generate is not None
    if isinstance(model.generate, DialogueGenerator):
        return model.generate.piece_tokens(image_NTD, place_N2)
    return model.generate.image_tokens(image_NTD)
