"""A small model that reads dialogues, and batches for it: several images, none, tiles, padding."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mmtrain.data.dialogues.batches import DialogueBatch
from mmtrain.data.images.tiles import TilesConfig
from mmtrain.models import Clip, ClipConfig
from mmtrain.models.connector import ConnectorConfig
from mmtrain.models.generate_answers import GenerateConfig
from mmtrain.models.parameters import lock_tower
from mmtrain.models.vqa import Vqa, VqaConfig
from mmtrain.nn.front_door import FrontDoorConfig
from mmtrain.parallel.mesh import ParallelConfig
from mmtrain.tasks.dialogues import dialogue_objective
from mmtrain.tasks.objective import Objective
from tests.parallel.tiny_answers import MODERN, VOCAB, _Laid, let_front_doors_speak
from tests.parallel.tiny_clip import tiny_config

LONGEST = 40
PIECES = (1, 0, 5, 2, 0, 1, 3, 0)
"""Of each dialogue of a batch: none, one image, tiles with a thumbnail, several images."""


def reading(*, tiles: bool = True, **blocks: Any) -> tuple[ClipConfig, VqaConfig]:
    """Four tokens a piece, tiles, a front door, a tied head; local layers among the others."""
    core = dataclasses.replace(
        MODERN, mask="causal", num_layers=3, local_window=6, local_layers=(1,), **blocks
    )
    return tiny_config(2), VqaConfig(
        connector=ConnectorConfig(kind="pixel_shuffle", factor=2),
        front_door=FrontDoorConfig(entries=5, places=("image",)),
        tiles=TilesConfig(most=4) if tiles else None,
        generate=GenerateConfig(
            transformer=core, vocab_size=VOCAB, text_length=LONGEST, reads="dialogues"
        ),
    )


def make_dialogues(
    step: int = 0, *, per_piece: int = 4, pieces: tuple[int, ...] = PIECES
) -> DialogueBatch:
    """A global batch; the last row is padding."""
    generator = torch.Generator().manual_seed(50 + step)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    num, total = len(pieces), sum(pieces)
    words = draw(5, 15, num)
    length = words + per_piece * torch.tensor(pieces)
    length[-1] = 1
    tokens, image = torch.zeros(num, int(length.max()), dtype=torch.int64), torch.zeros(1)
    image = torch.zeros(tokens.shape, dtype=torch.bool)
    trained = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, count in enumerate(length.tolist()):
        tokens[row, :count] = draw(1, VOCAB, count)
        at = 1
        for _ in range(pieces[row]):  # a word or none between the pieces
            image[row, at : at + per_piece] = True
            at += per_piece + int(draw(0, 2, 1))
        tokens[row][image[row]] = 0
        trained[row, at : at + 2] = True
        trained[row, count - 2 : count] = True
        trained[row] &= ~image[row]
        trained[row, 0] = False
    assert image.sum() == total * per_piece
    valid = torch.ones(num, dtype=torch.bool)
    valid[-1] = False
    place = torch.cat([_places(count) for count in pieces])
    return DialogueBatch(
        images_BCHW=draw(0, 256, total, 3, 32, 32).to(torch.uint8),
        num_pieces=pieces,
        place_N2=place,
        tokens_BT=tokens,
        length_B=length,
        image_BT=image,
        trained_BT=trained,
        num_trained=tuple(trained.sum(1).tolist()),
        position_B=torch.arange(num) + num * step,
        valid_B=valid,
        epoch=0,
        keys=tuple(str(row) for row in range(num)),
    )


def _places(count: int) -> Tensor:
    """Five pieces are a grid of four and its thumbnail, others images of one piece each."""
    if count != 5:
        return torch.full((count, 2), -1)
    return torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1], [-1, -1]])


def share(batch: DialogueBatch, rank: int, size: int) -> DialogueBatch:
    """One data-parallel coordinate's contiguous share of the rows, its pieces with them."""
    each = len(batch.num_pieces) // size
    rows = slice(rank * each, (rank + 1) * each)
    first = sum(batch.num_pieces[: rows.start])
    own = slice(first, first + sum(batch.num_pieces[rows]))
    fields = {
        field.name: value[own if field.name in ("images_BCHW", "place_N2") else rows]
        for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    counts = {name: getattr(batch, name)[rows] for name in ("num_pieces", "num_trained")}
    return dataclasses.replace(batch, **counts, **fields)


class TrainedDialogues(_Laid):
    """A model of dialogues, its objective, schedule and optimizers; arguments as TrainedVqa."""

    def __init__(
        self,
        config: tuple[ClipConfig, VqaConfig],
        *,
        packs: bool = False,
        parallel: ParallelConfig | None = None,
        num_microbatches: int = 1,
        lock_vision: int | None = None,
        **options: Any,
    ) -> None:
        self.model = model = Vqa(*config).init_weights(0)
        model.packs = packs
        state = Clip(config[0]).init_weights(0).vision.state_dict().items()
        model.vision.load_state_dict({n: v for n, v in state if not n.startswith("head.")})
        let_front_doors_speak(model)
        model.double()
        if lock_vision is not None:
            lock_tower(model.vision, unlocked_layers=lock_vision)
        self._lay_out(parallel, num_microbatches, **options)

    def _objective(self) -> Objective:
        return dialogue_objective(self.model, layout=self.layout, seed=3)

    def batch(self, step: int) -> DialogueBatch:
        return make_dialogues(step)

    def backward(self, batch: DialogueBatch) -> Tensor:
        rows = share(batch, self.layout.rank("dp"), self.layout.size("dp"))
        return self.objective.step(self.schedule, rows)
