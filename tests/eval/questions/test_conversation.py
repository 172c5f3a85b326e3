"""A question after others: what is written is what the whole dialogue says, and where it looks."""

import pytest
import torch
from PIL import Image

from mmtrain.data.dialogues.dialogue import Turn
from mmtrain.data.images.tiles import WHOLE
from mmtrain.errors import UsageError
from mmtrain.eval.look.answers import _laid_out
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.asking import stream_answer
from mmtrain.eval.questions.looking import look_at, region_seen
from mmtrain.eval.questions.reading import as_asked, dialogue_of, turns_with_room
from mmtrain.eval.questions.seeing import pieces_of, see
from mmtrain.models.dialogues import Told
from tests.data.shard_files import picture
from tests.eval.questions.answerers import make_answerer

EARLIER = [
    Turn("user", "what color is it?"),
    Turn("assistant", "red"),
    Turn("user", "is it red?"),
    Turn("assistant", "yes"),
]


@pytest.fixture(scope="module", params=["tiles", "dialogues"])
def answerer(request: pytest.FixtureRequest) -> Answerer:
    return make_answerer(request.param)


@pytest.mark.parametrize("num_earlier", [0, 2, 4])
def test_what_is_written_after_turns(answerer: Answerer, num_earlier: int) -> None:
    """Token by token with the cache, as by the whole dialogue computed anew for every token."""
    earlier, image = EARLIER[:num_earlier], picture((40, 24), seed=1)
    seen, pieces = see(answerer, image), pieces_of(answerer, image)
    steps = list(stream_answer(answerer, seen, "why?", earlier=earlier))
    told = dialogue_of(answerer, "why?", *pieces.counts, earlier=earlier)
    model, ids, total = answerer.model, [], 0.0
    for _ in range(answerer.answer_length):
        tokens_1T = torch.tensor([[*told.ids, *ids]])
        image_1T = torch.tensor([[*told.image, *[False] * len(ids)]])
        row = Told(tokens_BT=tokens_1T, image_BT=image_1T)
        with torch.no_grad():
            logits = model.generate(model.vision(pieces.images_NCHW), pieces.place_N2, row)
        best = logits[0, -1].log_softmax(0).max(0)
        total += float(best.values)
        ids.append(int(best.indices))
    assert len(steps) >= answerer.answer_length
    assert steps[-1][0] == answerer.tokenizer.decode(ids)
    assert steps[-1][1] == pytest.approx(torch.tensor(total).exp().item(), rel=1e-4)


def test_the_oldest_turns_leave_room(answerer: Answerer) -> None:
    """As few as need be, a question with its answer; a question too long by itself is told."""
    (count,) = pieces_of(answerer, picture((40, 24), seed=1)).counts
    long = [Turn("user", f"is it {'red ' * n}?") for n in range(1, 20)]
    earlier = [turn for one in long for turn in (one, Turn("assistant", "yes"))]
    kept = turns_with_room(answerer, count, "why?", earlier)
    assert 0 < len(kept) < len(earlier) and list(kept) == earlier[-len(kept) :]
    assert kept[0].role == "user"

    def length(turns: list[Turn]) -> int:
        return len(dialogue_of(answerer, "why?", count, earlier=turns).ids)

    most = answerer.model.generate.decoder.config.context_length - answerer.answer_length
    assert length(list(kept)) <= most < length(earlier[-len(kept) - 2 :])
    assert list(turns_with_room(answerer, count, "why?", EARLIER)) == EARLIER
    question = "why is it so? " * 90
    assert not turns_with_room(answerer, count, question, EARLIER)
    with pytest.raises(UsageError, match="leaves room for"):
        seen = see(answerer, picture((40, 24), seed=1))
        as_asked(answerer, seen, [(0, question)], max_new_tokens=answerer.answer_length)


def test_where_a_dialogue_looks(answerer: Answerer) -> None:
    """Over the tiles of the whole picture; what the model looks at moves with what it is shown."""
    image = picture((40, 24), seed=1)
    pieces = pieces_of(answerer, image)
    looked = look_at(answerer, pieces, "why?", earlier=EARLIER)
    tiled = answerer.model.config.tiles is not None
    assert looked.grid is not None
    assert looked.grid.shape == ((4, 4) if tiled else (2, 2))
    assert float(looked.grid.sum()) == pytest.approx(1, abs=1e-5)
    assert (region_seen(answerer, image) == (0, 0, 1, 1)) == tiled
    if not tiled:
        return
    other = look_at(answerer, pieces, "is it red?")
    assert other.grid is not None and not torch.equal(other.grid, looked.grid)
    tall = pieces_of(answerer, image.resize((12, 40), Image.Resampling.NEAREST))
    turned = look_at(answerer, tall, "why?")
    assert turned.grid is not None and turned.grid.shape == (6, 2)
    assert len(turned.entries["image"]) == 5


def test_tiles_and_thumbnail_share_one_map() -> None:
    share_NSS = torch.zeros(7, 2, 2)
    share_NSS[4, 0, 1] = 0.25  # of the tile in the second row and column
    share_NSS[6, 1, 0] = 0.75  # of the thumbnail: the lower left quarter
    place = [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [WHOLE, WHOLE]]
    grid = _laid_out(share_NSS, torch.tensor(place))
    expected = torch.zeros(4, 6)
    expected[2:, :3] = 0.75 / 6
    expected[2, 3] += 0.25
    torch.testing.assert_close(grid, expected)
    torch.testing.assert_close(_laid_out(share_NSS[6:], torch.tensor(place[6:])), share_NSS[6])
