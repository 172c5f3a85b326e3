"""A model that goes on with dialogues as ONNX graphs: image.onnx of the pieces of images, then its
decoder, held against torch."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.data.images.tiles import WHOLE, TilesConfig
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.interop.decoder_graphs import IMAGE_TOKENS, PIECES, DialogueGraph
from mmtrain.interop.graph_folder import describe_preprocess
from mmtrain.interop.graphs import Graph, Port
from mmtrain.interop.onnx_decoder import Reading, write_decoder, write_file
from mmtrain.interop.package import VqaModel
from mmtrain.interop.tower_graphs import BATCHES, drawn_images, with_plain_patches
from mmtrain.models.dialogues import DialogueGenerator, Told
from mmtrain.models.prefill import prefill, to_the_left
from mmtrain.models.vqa import Vqa

_MOST_STEPS = 16
"""Tokens of an answer that are held against torch's at most."""
_ROWS = (((0,),), ((), (0, 1), (1, 2)))
"""Pieces that drawn dialogues show, of those of their batch; the first two of a batch, which are
traced with, show none but its first two."""
_TAIL = 3
"""Words behind the images of a drawn dialogue at most."""


class PieceGraph(nn.Module):
    """uint8 [N, 3, H, W], of a model of tiles also where each piece stands, int64 [N, 2] -> what
    the decoder reads of them, [N, P, D]."""

    def __init__(self, model: Vqa) -> None:
        super().__init__()
        assert isinstance(model.generate, DialogueGenerator)
        self.vision, self.generate = with_plain_patches(model.vision), model.generate

    def forward(self, images: Tensor, *places: Tensor) -> tuple[Tensor]:
        """Tokens of pieces; the pixels are normalised here."""
        image_NTD = self.vision(images)
        place_N2 = places[0] if places else torch.full((1, 2), WHOLE)  # which nobody reads
        return (self.generate.piece_tokens(image_NTD, place_N2),)


def write_onnx_dialogues(
    package: VqaModel, folder: Path, *, weights: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Write image.onnx, prefill.onnx and step.onnx -> what model.json says of them.

    Raises:
        UsageError: the exporter cannot take a part, or logits of fp32 weights are not torch's.
    """
    model = package.model
    generator, tiles = model.generate, model.config.tiles
    assert isinstance(generator, DialogueGenerator)
    pieces = _drawn_pieces(model)
    image = write_file(_piece_graph(model, pieces), folder, weights=weights)
    steps = min(package.answer_length, _MOST_STEPS, generator.decoder.config.context_length // 2)
    tokens_NPD = torch.cat([image.run(*some)[0] for some in _batches(pieces)])
    readings = [
        _reading(package, some, seen_NPD, rows, num_steps=steps)
        for some, seen_NPD, rows in zip(
            _batches(pieces), tokens_NPD.split(BATCHES), _ROWS, strict=True
        )
    ]
    entries = write_decoder(
        DialogueGraph(generator.decoder).eval(),
        readings,
        folder,
        weights=weights,
        num_steps=steps,
        say=say,
    )
    described = image.entry | describe_preprocess(model.clip.vision, package.preprocess)
    facts = {
        "tokens_of_a_piece": tokens_NPD.size(1),
        "most_tokens": generator.decoder.config.context_length,
        "turns": _turns(package.tokenizer),
    }
    if tiles is not None:
        described["tiles"] = _describe_tiles(tiles)
    return {"image": described, **entries, "dialogue": facts}


def _describe_tiles(tiles: TilesConfig) -> dict[str, Any]:
    return {
        "most": tiles.most,
        "thumbnail": tiles.thumbnail,
        "place_of_the_whole": [WHOLE, WHOLE],
        "resized_by": "torch.nn.functional.interpolate, uint8, antialias = True, to the whole grid",
    }


def _turns(tokenizer: Tokenizer) -> str:
    """How turns become one row, in words."""
    a_turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    if tokenizer.chat_tokens(a_turn, mark="\0") is not None:
        return "as the chat template in tokenizer_file has them"
    return "start_ids, then a question, end_ids, its answer, the first of answer.end_ids, and so on"


def _drawn_pieces(model: Vqa) -> tuple[Tensor, ...]:
    """Noise, and of a model of tiles places of all kinds."""
    images = drawn_images(model.clip.vision)
    tiles = model.config.tiles
    if tiles is None:
        return (images,)
    places = [[WHOLE, WHOLE], [0, 0], [0, tiles.most - 1], [tiles.most - 1, 0]]
    return images, torch.tensor(places)


def _batches(pieces: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(x.split(BATCHES) for x in pieces), strict=True))


def _piece_graph(model: Vqa, pieces: tuple[Tensor, ...]) -> Graph:
    network, example = PieceGraph(model).eval(), tuple(x[:2] for x in pieces)
    with torch.no_grad():
        (made_NPD,) = network(*example)
    names = ("images", "places")[: len(example)]
    return Graph(
        name="image",
        told="the image tower",
        network=network,
        example=example,
        inputs=tuple(
            Port(name, (PIECES, *x.shape[1:])) for name, x in zip(names, example, strict=True)
        ),
        outputs=(Port(IMAGE_TOKENS, (PIECES, *made_NPD.shape[1:])),),
    )


@torch.no_grad()
def _reading(
    package: VqaModel,
    pieces: tuple[Tensor, ...],
    seen_NPD: Tensor,
    rows: Sequence[Sequence[int]],
    *,
    num_steps: int,
) -> Reading:
    """Drawn dialogues about pieces: a word, an image, a word, an image, some words.

    Args:
        package: the model.
        pieces: as image.onnx takes them.
        seen_NPD: what image.onnx made of them.
        rows: the pieces that each shows; those for which there is no room are left out.
        num_steps: tokens to leave room for.
    """
    generator = package.model.generate
    assert isinstance(generator, DialogueGenerator)
    images, *places = pieces
    place_N2 = places[0] if places else torch.full((len(images), 2), WHOLE)
    ours_NPD = generator.piece_tokens(package.model.vision(images), place_N2)
    per_piece, room = ours_NPD.size(1), generator.decoder.config.context_length - num_steps
    laid_out: list[list[int]] = []
    for shown in rows:
        row: list[int] = []
        for piece in shown[: (room - 1) // (per_piece + 1)]:
            row += [-1, *range(piece * per_piece, (piece + 1) * per_piece)]
        laid_out.append(row + [-1] * min(_TAIL, room - len(row)))
    length_B = torch.tensor([len(row) for row in laid_out])
    most = int(length_B.max())
    place_BT = torch.tensor([row + [-1] * (most - len(row)) for row in laid_out])
    draw = torch.Generator().manual_seed(len(rows))
    vocab_size = generator.decoder.config.vocab_size
    ids_BT = torch.randint(vocab_size, place_BT.shape, generator=draw)
    first_B = torch.tensor([max(0, *row[1:2]) for row in laid_out])
    told = Told(tokens_BT=ids_BT, image_BT=place_BT >= 0, first_B=first_B)
    x_BTD, real_BT, _ = to_the_left(generator.placed(ours_NPD, told), length_B)
    start = prefill(generator.decoder, x_BTD, real_BT=real_BT, max_new_tokens=num_steps)
    return Reading(inputs=(seen_NPD, ids_BT, place_BT, length_B), start=start)
