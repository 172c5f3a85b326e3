"""Batches of dialogues: tokens and pieces in their places, functions of the number alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtrain.data.config import DataConfig
from mmtrain.data.dialogues.batches import DialogueBatch, DialogueData, check_learnt
from mmtrain.data.dialogues.config import DialogueDataConfig
from mmtrain.data.images.tiles import TilesConfig
from mmtrain.data.images.transforms import AugmentConfig, PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from tests.data.dialogues.dialogue_files import (
    llava_row,
    picture,
    write_jsonl,
    write_llava,
    write_pictures,
)

ROOT = Path(__file__).parents[3]
TOKENIZER = build_tokenizer(
    TokenizerConfig(
        kind="sentencepiece",
        path=str(ROOT / "mmtrain/demo/vqa/sentencepiece.model"),
        context_length=16,
        clean="canonicalize",
    )
)
WHOLE_IMAGE = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(0.5, 2.0))


def build_data(
    train: Path, *, batch_size: int = 4, tiles: TilesConfig | None = None, **changes: Any
) -> DialogueData:
    of_dialogues = {"max_length": 64} | {
        name: changes.pop(name) for name in ("max_length", "too_long") if name in changes
    }
    common = {name: changes.pop(name) for name in ("fixed_length", "images") if name in changes}
    return DialogueData(
        DataConfig(train=str(train), **changes),
        dialogues=DialogueDataConfig(**of_dialogues),
        tiles=tiles,
        tokens_per_piece=4,
        preprocess=PreprocessConfig(image_size=16),
        tokenizer=TOKENIZER,
        seed=3,
        batch_size=batch_size,
        **common,
    )


def row_of(batch: DialogueBatch, row: int) -> list[str]:
    """The tokens of a row: `[i]` of an image, in capitals what is trained."""
    length = int(batch.length_B[row])
    told = []
    for place in range(length):
        token = TOKENIZER.decode([int(batch.tokens_BT[row, place])]) or "."
        token = "[i]" if batch.image_BT[row, place] else token
        told.append(token.upper() if batch.trained_BT[row, place] else token)
    return told


def same(first: DialogueBatch, second: DialogueBatch) -> bool:
    return all(
        torch.equal(value, getattr(second, name))
        for name, value in vars(first).items()
        if isinstance(value, torch.Tensor)
    )


def test_a_batch_is_a_function_of_its_number(tmp_path: Path):
    train = write_llava(tmp_path, 12, turns=2)
    data, again = build_data(train), build_data(train)
    batch = data.batch(1)
    for number in (5, 0, 1):
        other = again.batch(number)
    assert same(batch, other)
    made = [*build_data(train, workers=2).iterate(0, 2)]
    assert same(made[1], batch)
    assert batch.images_BCHW.shape == (4, 3, 16, 16) and batch.num_pieces == (1,) * 4


def test_the_assistants_words_and_their_ends_are_trained(tmp_path: Path):
    batch = build_data(write_llava(tmp_path, 4, turns=2)).batch(0)
    row = batch.keys.index("row1")
    want = "[i] [i] [i] [i] what color is thing 1 0 . GREEN . what color is thing 1 1 . BLUE ."
    assert " ".join(row_of(batch, row)) == want
    ends = batch.trained_BT[row] & (batch.tokens_BT[row] == TOKENIZER.eot_id)
    assert ends.sum() == 2
    assert not (batch.trained_BT & batch.image_BT).any()
    assert not (batch.trained_BT & ~batch.real_BT).any()


def test_images_stand_in_their_places_in_order(tmp_path: Path):
    write_pictures(tmp_path, 9)
    value = "a <image> b <image> c"
    said = [{"from": "human", "value": value}, {"from": "gpt", "value": "red"}]
    rows = [
        {"conversations": said, "images": [f"pictures/{n}.png", f"pictures/{n + 1}.png"]}
        for n in (0, 2, 4)
    ]
    rows.append({"conversations": [{"from": "user", "value": "a"}, said[1]]})
    batch = build_data(write_jsonl(tmp_path / "t.jsonl", rows), augment=WHOLE_IMAGE).batch(0)
    image = ["[i]"] * 4
    want = ["a", *image, "b", *image, "c", ".", "RED", "."]
    first = 0
    for row, key in enumerate(batch.keys):
        number = int(key.rpartition(":")[2]) - 1
        num = batch.num_pieces[row]
        if number == 3:
            assert num == 0 and row_of(batch, row) == ["a", ".", "RED", "."]
            continue
        assert row_of(batch, row) == want and num == 2
        reds = batch.images_BCHW[first : first + 2, 0].float().mean((1, 2))
        assert reds.tolist() == [2 * number, 2 * number + 1]
        first += num
    assert first == batch.images_BCHW.size(0) == batch.place_N2.size(0) == 6
    assert (batch.place_N2 == -1).all()


def test_tiles_make_several_pieces_of_an_image(tmp_path: Path):
    train = write_llava(tmp_path, 4)
    (tmp_path / "pictures/1.png").write_bytes(picture(1, size=(40, 16)))
    batch = build_data(train, tiles=TilesConfig(most=2)).batch(0)
    pieces = dict(zip(batch.keys, batch.num_pieces, strict=True))
    assert pieces["row1"] == 3
    row = batch.keys.index("row1")
    first = sum(batch.num_pieces[:row])
    assert batch.place_N2[first : first + 3].tolist() == [[0, 0], [0, 1], [-1, -1]]
    assert batch.image_BT.sum(1).tolist() == [4 * n for n in batch.num_pieces]


def test_padding_rows_have_one_token_and_no_piece(tmp_path: Path):
    data = build_data(write_llava(tmp_path, 5), last="mask")
    batch = data.batch(1)
    assert batch.valid_B.tolist() == [True, False, False, False]
    assert batch.length_B[1:].tolist() == [1] * 3 and batch.num_pieces[1:] == (0,) * 3
    assert batch.images_BCHW.size(0) == 1 and not batch.trained_BT[1:].any()


def test_static_shapes_and_stages_without_images(tmp_path: Path):
    train = write_llava(tmp_path, 4)
    batch = build_data(train, fixed_length=16, images=False).batch(0)
    assert batch.tokens_BT.shape == (4, 64) and batch.images_BCHW.shape == (4, 0)


def test_settings_without_effect_are_one_line(tmp_path: Path):
    train = write_llava(tmp_path, 4)
    for changes, told in (
        ({"captions": {"x": 1.0}}, "data.captions has no effect on dialogues"),
        ({"label_key": "x"}, "data.label_key has no effect on dialogues"),
        ({"image_key": "x"}, "data.image_key = x has no effect on dialogues"),
        ({"max_length": 4}, "vqa.dialogues.max_length = 4 holds no image, which is 4 tokens"),
        ({"tiles": TilesConfig(), "fast_decode": True}, "data.fast_decode = true"),
    ):
        with pytest.raises(UsageError, match=told) as refused:
            build_data(train, **changes)
        assert "\n" not in str(refused.value)


def test_rows_are_told_apart_by_their_text(tmp_path: Path):
    train = tmp_path / "talk.json"
    write_pictures(tmp_path, 4)
    train.write_text(json.dumps([llava_row(n) for n in range(4)], indent=1))
    batch = build_data(train).batch(0)
    texts = batch.row_texts(TOKENIZER.decode)
    assert sorted(texts)[0] == "what color is thing 0 0 red"


@pytest.mark.parametrize("fault", ["no token", "places of images", "padding", "tokens of images"])
def test_a_batch_that_teaches_nothing_or_nonsense_is_refused(fault: str, tmp_path: Path):
    batch = build_data(write_llava(tmp_path, 4)).batch(0)
    check_learnt(batch, tokens_per_piece=4, number=0)
    trained_BT, image_BT = batch.trained_BT.clone(), batch.image_BT.clone()
    match fault:
        case "no token":
            trained_BT.zero_()
        case "places of images":
            trained_BT[1] |= image_BT[1]
        case "padding":
            trained_BT[0, -1] = True
            batch.length_B[0] -= 1
        case _:
            image_BT[2, 0] = False
    wrong = replace(batch, trained_BT=trained_BT, image_BT=image_BT)
    with pytest.raises(UsageError, match=f"batch 0 of row.*: {fault}") as refused:
        check_learnt(wrong, tokens_per_piece=4, number=0)
    assert "\n" not in str(refused.value)
