"""Dialogues in every form and file, the same dialogue from each; and every mistake in them."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mmtrain.data.config import DataConfig
from mmtrain.data.dialogues.dialogue import parse_dialogue
from mmtrain.data.dialogues.reader import DialogueReader
from mmtrain.data.dialogues.source import dialogue_files, open_dialogues
from mmtrain.data.sample_check import check_with
from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError
from tests.data.dialogues.dialogue_files import llava_row, picture, write_jsonl, write_pictures
from tests.data.shard_files import write_shard

TURNS = [
    ("user", "<image>what is it?"),
    ("assistant", "red"),
    ("user", "sure?"),
    ("assistant", "y"),
]
USER, GPT = {"from": "human", "value": "<image>what is it?"}, {"from": "gpt", "value": "red"}


def open_from(path: Path, **images: str | None):
    config = DataConfig(train=str(path))
    return open_dialogues(str(path), images=images.get("images"), config=config)


def read_all(path: Path, **images: str | None) -> list[tuple[list[tuple[str, str]], list[bytes]]]:
    source = open_from(path, **images)
    found = [dialogue_files(source.read(number)) for number in range(source.num_samples)]
    return [([*map(tuple, dialogue.turns)], files) for dialogue, files in found]


def messages(*parts: Any) -> list[dict[str, Any]]:
    first, *rest = ({"role": role, "content": text} for role, text in TURNS)
    return [first | {"content": list(parts)} if parts else first, *rest]


def test_every_form_is_the_same_dialogue(tmp_path: Path):
    write_pictures(tmp_path, 1)
    name, data = "pictures/0.png", picture(0)
    names = {"user": "human", "assistant": "gpt"}
    said = [{"from": names[role], "value": text} for role, text in TURNS]
    text = {"type": "text", "text": "what is it?"}
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    plain = messages()
    plain[0]["content"] = "what is it?"
    rows = [
        {"conversations": said, "image": name},
        {"conversations": said, "images": [name]},
        {"messages": messages(), "images": [name], "id": 7},
        {"messages": messages({"type": "image"}, text), "images": [name]},
        {"messages": messages({"type": "image", "image": name}, text)},
        {"messages": messages({"type": "image_url", "image_url": {"url": url}}, text)},
        {"messages": messages({"type": "image", "url": f"file://{tmp_path}/{name}"}, text)},
        {"messages": plain, "images": [name]},  # no way to say where: the first question's
        {
            "texts": [
                {"user": "what is it?", "assistant": "red", "source": "x"},
                {"user": "sure?", "assistant": "y"},
            ],
            "images": [name],
        },
    ]
    for suffix in ("jsonl", "json"):
        path = write_jsonl(tmp_path / f"t.{suffix}", rows)
        for turns, files in read_all(path):
            assert turns == TURNS and files == [data]
    path = tmp_path / "array.json"
    path.write_text(json.dumps(rows))
    assert read_all(path) == [(TURNS, [data])] * len(rows)
    assert open_from(path).key(2) == "7"


def test_images_may_lie_in_another_folder(tmp_path: Path):
    write_pictures(tmp_path / "there", 2)
    path = write_jsonl(tmp_path / "t.jsonl", [llava_row(n) for n in range(2)])
    found = read_all(path, images=str(tmp_path / "there"))
    assert [files for _, files in found] == [[picture(0)], [picture(1)]]
    with pytest.raises(UsageError, match=r"vqa\.dialogues\.images = .* is no folder"):
        read_all(path, images=str(tmp_path / "nowhere"))


def test_parquet_with_images_in_the_table(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    texts = [{"user": "what is it?", "assistant": "red"}, {"user": "sure?", "assistant": "y"}]
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "texts": datasets.List(
                {"user": datasets.Value("string"), "assistant": datasets.Value("string")}
            ),
        }
    )
    rows = {
        "images": [[{"bytes": picture(n), "path": None}] for n in range(3)],
        "texts": [texts] * 3,
    }
    rows["images"][2] *= 2
    data = datasets.Dataset.from_dict(rows, features=features)
    data.to_parquet(tmp_path / "cauldron.parquet")
    data.save_to_disk(str(tmp_path / "saved"))
    plain = datasets.Dataset.from_dict(
        {"messages": [messages()] * 2, "image": [{"bytes": picture(n)} for n in range(2)]}
    )
    plain.to_parquet(tmp_path / "plain.parquet")
    for path in (tmp_path / "cauldron.parquet", tmp_path / "saved"):
        found = read_all(path)
        assert found[0] == (TURNS, [picture(0)]) and found[1] == (TURNS, [picture(1)])
        assert found[2][0][0] == ("user", "<image><image>what is it?") and len(found[2][1]) == 2
    assert read_all(tmp_path / "plain.parquet") == [(TURNS, [picture(n)]) for n in range(2)]
    datasets.Dataset.from_dict({"x": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UsageError, match=r"has no column of dialogues \(x\)"):
        open_from(tmp_path / "other.parquet")


def test_shards_name_their_images_by_place_or_by_name(tmp_path: Path):
    two = {"conversations": [USER | {"value": "<image> or <image>"}, GPT]}
    by_name = two | {"images": ["b.png", "a.png"]}
    whole_names = two | {"images": ["4.1.png", "4.0.png"]}
    samples = [
        ("0", {"json": {"conversations": [USER, GPT]}, "png": picture(0)}),
        ("1", {"json": two, "0.png": picture(1), "1.png": picture(2)}),
        ("2", {"json": two, "2.png": picture(1), "10.png": picture(2)}),
        ("3", {"json": by_name, "a.png": picture(1), "b.png": picture(2)}),
        ("4", {"json": whole_names, "0.png": picture(2), "1.png": picture(1)}),
        ("5", {"json": {"conversations": [USER, GPT], "image": "far/9.jpg"}, "png": picture(0)}),
        ("6", {"json": {"texts": [{"user": "a", "assistant": "b"}]}}),
    ]  # fmt: skip
    found = read_all(write_shard(tmp_path / "talk.tar", samples))
    of = [files for _, files in found]
    assert of[0] == of[5] == [picture(0)] and of[6] == []
    assert of[1] == of[2] == of[4] == [picture(1), picture(2)] and of[3] == [picture(2), picture(1)]


BAD_ROWS: list[tuple[Any, str]] = [
    ({"conversations": [USER]}, "dialogue without an assistant"),
    ({"conversations": []}, "dialogue without an assistant"),
    ({"texts": []}, "dialogue without an assistant"),
    ({"conversations": [USER, USER, GPT]}, "two turns of one role in a row (turns 1 and 2)"),
    ({"conversations": [USER, GPT, GPT]}, "two turns of one role in a row (turns 2 and 3)"),
    ({"conversations": [GPT, USER, GPT]}, "the assistant speaks first"),
    (
        {"conversations": [USER, GPT | {"from": "narrator"}]},
        "unknown role (turn 2: 'narrator', not system or",
    ),
    ({"messages": [{"role": "tool", "content": "x"}]}, "unknown role (turn 1: 'tool'"),
    ({"conversations": [{"value": "x"}, GPT]}, "unknown role (turn 1: None"),
    ({"conversations": [USER, GPT | {"value": " \n"}]}, "empty assistant turn (turn 2)"),
    ({"conversations": [USER, GPT | {"value": None}]}, "dialogue malformed (turn 2: value is no"),
    ({"conversations": "x"}, "dialogue malformed (conversations is no list of turns)"),
    ({"conversations": ["x"]}, "dialogue malformed"),
    ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "dialogue malformed"),
    ({"conversations": [USER, GPT | {"value": "<image>"}]}, "<image> in no user's turn (turn 2)"),
    ({"conversations": [USER, GPT, {"from": "system", "value": "x"}]}, "system's turn is not the"),
    ({"conversations": [USER, GPT], "messages": []}, "several dialogues in a row"),
    ({"caption": "x"}, "no dialogue (has caption)"),
    ({"conversations": [USER, GPT], "image": None}, "(0 images, 1 <image> place)"),
    ({"conversations": [USER, GPT], "images": ["a", "b"]}, "(2 images, 1 <image> place)"),
    ({"conversations": [USER | {"value": "x"}, GPT], "image": "a"}, "(1 image, 0 <image> places)"),
    ({"messages": messages({"type": "image"}), "images": ["a", "b"]}, "(2 images, 1 <image>"),
    ({"conversations": [USER, GPT], "image": "a", "images": ["b"]}, "images named twice"),
    ({"conversations": [USER, GPT], "image": "gone.png"}, "image missing (looked for at"),
    ({"conversations": [USER, GPT], "image": "https://x/y.png"}, "image is a URL"),
    ({"conversations": [USER, GPT], "image": "broken.png"}, "image truncated"),
    ({"conversations": [USER, GPT], "image": "text.png"}, "no image that Pillow reads"),
    ({"conversations": [USER, GPT], "image": "data:image/png;base64,@@"}, "image is no base64"),
    ({"conversations": [USER, GPT], "image": 7}, "no image path"),
    ("{", "row is no JSON"),
    ("[1]", "row is no JSON object"),
]


SAYS_MORE: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    *(({name: ["x"]}, {}, f"{name} = ['x']") for name in ("tools", "video", "videos", "audio")),
    ({"system": 5}, {}, "system = 5"),
    *(({}, {name: 0}, f"turn 2: {name} = 0") for name in ("weight", "loss", "train")),
    ({}, {"loss": False}, "turn 2: loss = False"),
    ({}, {"weight": 0.5}, "turn 2: weight = 0.5"),
    ({}, {"tool_calls": [{"name": "f"}]}, "turn 2: tool_calls = [{"),
    ({}, {"reasoning_content": "so"}, "turn 2: reasoning_content = 'so'"),
    ({}, {"role": "user"}, "turn 2: from and role"),
]


def test_what_is_said_and_not_read_makes_a_bad_sample(tmp_path: Path):
    """Answers that are not to be learnt, tools, a film: none of them is left out in silence."""
    for row, turn, told in SAYS_MORE:
        with pytest.raises(SampleError) as error:
            parse_dialogue({"conversations": [USER, GPT | turn]} | row)
        assert told in error.value.told, (row, turn)
    nothing = {"tool_calls": None, "weight": 1, "loss": True, "reasoning_content": "", "role": None}
    said = {"conversations": [USER, GPT | nothing | {"role": "assistant"}]}
    plain = parse_dialogue({"conversations": [USER, GPT]})
    assert parse_dialogue(said | {"tools": [], "video": None, "system": ""}) == plain


@pytest.mark.parametrize("form", ["messages", "texts"])
def test_an_image_in_another_field_is_not_left_out_in_silence(form: str, tmp_path: Path):
    turns = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "red"}]
    said = turns if form == "messages" else [{"user": "what?", "assistant": "red"}]
    cells = ("a.JPG", ["cats/a.png", "b.png"], {"bytes": None, "path": "a.jpg"})
    rows = [{form: said, "id": "1.jpg", "image_path": cell} for cell in cells]
    rows += [{form: said, "id": "1.jpg", "image": None, "source": "talks.json", "pages": [1]}]
    write_pictures(tmp_path, 1)
    rows += [{form: said, "image": "pictures/0.png", "image_path": "cats/0.png"}]
    source = open_from(write_jsonl(tmp_path / "talk.jsonl", rows))
    for number in range(len(cells)):
        with pytest.raises(SampleError) as error:
            source.read(number)
        assert "says what is not read (image_path, an image" in error.value.told
    assert source.read(3).keys() == {"json"} and "images/0" in source.read(4)


def test_the_system_may_speak_in_a_field_of_the_row():
    asked = {"conversations": [USER, GPT], "system": "be brief"}
    assert parse_dialogue(asked).turns[0] == ("system", "be brief")
    twice = {"messages": [{"role": "system", "content": "a"}, *messages()], "system": "b"}
    with pytest.raises(SampleError) as error:
        parse_dialogue(twice)
    assert "in system and in a turn" in error.value.told


@pytest.mark.parametrize(
    ("numbers", "shown"),
    [
        ([0, 1], ["a", "b"]),
        ([1, 0], ["b", "a"]),
        ([1, 1, 0], ["b", "b", "a"]),
        ([None, None], ["a", "b"]),
        ([1, None], None),
        ([1, 2], None),
        ([0, -1], None),
        ([1, True], None),
    ],
)
def test_parts_say_which_image_they_show(numbers: list[Any], shown: list[str] | None):
    parts = [{"type": "image", "index": number, "text": None} for number in numbers]
    row = {"messages": messages(*parts, {"type": "text", "text": "?"}), "images": ["a", "b"]}
    if shown is not None:
        assert [*parse_dialogue(row).names] == shown
        return
    with pytest.raises(SampleError) as error:
        parse_dialogue(row)
    assert "images and their places differ in order (index " in error.value.told


def test_a_mistake_is_one_bad_sample_that_is_named(tmp_path: Path):
    write_pictures(tmp_path, 2)
    (tmp_path / "broken.png").write_bytes(picture(0)[:60])
    (tmp_path / "text.png").write_text("no image")
    good = [llava_row(n) for n in range(2)]
    rows = [good[0], *(row for row, _ in BAD_ROWS), good[1]]
    path = write_jsonl(tmp_path / "t.jsonl", rows)
    report = check_with(DialogueReader(open_from(path), transform=None), samples=None, workers=0)
    assert report.num_samples == len(rows) and report.num_unusable == len(BAD_ROWS)
    for line, (found, (row, told)) in enumerate(zip(report.named, BAD_ROWS, strict=True), start=2):
        assert f"{path}:{line}: " in str(found), row
        assert told in str(found), row


@pytest.mark.parametrize(
    "name, content, told",
    [
        (
            "t.jsonl",
            '{"a": 1}\n{"b": 2}\n',
            r"none of its 2 .*t\.jsonl:1: no dialogue \(has a\)",
        ),
        ("t.jsonl", "", "has no rows"),
        ("t.json", '{\n"conversations": 1}', "neither an array of rows nor a row a line"),
        ("t.json", '[{"conversations": []}', "damaged JSON array"),
        ("t.csv", "conversations,image\nx,y\n", "a dialogue is a row of JSON"),
        ("t.jsonl", '{"conversations": []}\n', "none of its 1 rows .*: dialogue without an assis"),
        ("t.txt", "x", r"t\.txt"),
        ("gone.jsonl", None, "cannot be read"),
    ],
)
def test_a_file_without_dialogues_is_one_line(
    name: str, content: str | None, told: str, tmp_path: Path
):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=told) as refused:
        open_from(tmp_path / name)
    assert "\n" not in str(refused.value) and name in str(refused.value)


def test_other_data_are_refused(tmp_path: Path):
    write_pictures(tmp_path, 3)
    for spec in (tmp_path / "pictures", "synthetic:4"):
        with pytest.raises(UsageError, match="holds no dialogues; name a "):
            open_from(Path(spec))
    shard = write_shard(tmp_path / "pairs.tar", [("0", {"png": picture(0), "txt": "x"})])
    with pytest.raises(UsageError, match="none of 1 samples looked at is a dialogue"):
        open_from(shard)
    remote = DataConfig(train="s3://bucket/talk.jsonl")
    with pytest.raises(UsageError, match="tar shards are read"):
        open_dialogues("s3://bucket/talk.jsonl", images=None, config=remote)


def test_a_shard_whose_image_is_gone_is_a_bad_sample(tmp_path: Path):
    row = {"conversations": [USER, GPT], "image": "a.png"}
    two = {"conversations": [USER | {"value": "<image><image>"}, GPT], "images": ["a.png", "b.png"]}
    samples = [
        ("0", {"json": row, "png": picture(0)}),
        ("1", {"json": row}),
        ("2", {"json": two, "a.png": picture(0)}),
    ]
    source = open_from(write_shard(tmp_path / "talk.tar", samples))
    dialogue_files(source.read(0))
    for number, lost in ((1, "a.png; the sample has none"), (2, "b.png; the sample has .a.png")):
        with pytest.raises(SampleError, match="image missing") as refused:
            dialogue_files(source.read(number))
        assert re.search(lost, refused.value.detail)


def test_columns_that_are_null_count_as_absent():
    row = {"conversations": None, "messages": messages(), "images": None, "image": "a"}
    assert parse_dialogue(row).names == ("a",)
    part = {"type": "text", "text": "what?", "image": None}
    assert parse_dialogue({"messages": messages(part)}).num_places == 0


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not on this machine")
def test_the_guides_line_makes_dialogues_of_cocos_captions(tmp_path: Path):
    """One of each caption, its white space at the ends gone; what is said is written there."""
    guide = Path("docs/vqa.md").read_text()
    (line,) = re.findall(r"^jq -c 'INDEX.*?\.jsonl$", guide, re.DOTALL | re.MULTILINE)
    write_pictures(tmp_path, 2)
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(2)]
    said = [(7, 1, " A red circle.\n"), (8, 0, 'a "b"\\'), (9, 1, "one")]
    rows = [{"id": n, "image_id": image, "caption": text} for n, image, text in said]
    content = {"info": {}, "images": images, "annotations": rows}
    (tmp_path / "captions_train2017.json").write_text(json.dumps(content))
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    path, folder = tmp_path / "coco_captions.jsonl", str(tmp_path / "pictures")
    asked = ("user", "<image>\nDescribe the image in one sentence.")
    assert read_all(path, images=folder) == [
        ([asked, ("assistant", text.strip())], [picture(image)]) for _, image, text in said
    ]
    source = open_from(path, images=folder)
    assert [source.key(number) for number in range(3)] == ["7", "8", "9"]
