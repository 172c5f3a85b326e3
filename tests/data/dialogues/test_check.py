"""`mmtrain data check` of dialogues."""

from pathlib import Path

import pytest

from mmtrain.cli import main
from tests.data.dialogues.dialogue_files import llava_row, picture, write_jsonl, write_llava
from tests.data.shard_files import write_shard


def check(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main(["data", "check", *map(str, words)])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_dialogues_are_told_and_bad_ones_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_llava(tmp_path, 3)
    status, out, err = check(capsys, path)
    assert (status, err) == (0, "") and out.splitlines() == [
        "the samples are dialogues, which are checked",
        "3 samples, all can be used",
    ]
    lost = [llava_row(0), llava_row(1, image="gone.png"), {"conversations": [], "image": "x"}]
    status, _, err = check(capsys, write_jsonl(path, lost), "--workers", 1)
    lines = err.splitlines()
    assert status == 1 and len(lines) == 3
    assert lines[0].startswith(f"mmtrain: {path}:2: row1: image missing (looked for at")
    assert lines[1].startswith(f"mmtrain: {path}:3: dialogue without an assistant")
    assert "2 of 3 samples would not be used" in lines[2]


def test_dialogues_of_shards_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    samples = [(f"{n}", {"json": llava_row(n), "png": picture(n)}) for n in range(3)]
    samples[1][1].pop("png")
    status, out, err = check(capsys, write_shard(tmp_path / "talk.tar", samples))
    assert status == 1 and "the samples are dialogues" in out
    assert "talk.tar: 1: image missing (pictures/1.png; the sample has none)" in err


@pytest.mark.parametrize(
    "words, told",
    [
        (["--captions", "txt"], "--captions has no effect on a check of dialogues"),
        (["--label-key", "x"], "--label-key has no effect on a check of dialogues"),
        (["--images", "nowhere"], "--images = nowhere is no folder"),
        (["--image-key", "picture"], "--image-key = picture is no column"),
    ],
)
def test_what_has_no_effect_is_refused(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    status, _, err = check(capsys, write_llava(tmp_path, 2), *words)
    assert status == 2 and told in err and len(err.splitlines()) == 1


def test_other_data_take_no_folder_of_images_and_need_a_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    shard = write_shard(tmp_path / "p.tar", [("0", {"png": picture(0), "txt": "x"})])
    status, _, err = check(capsys, shard, "--images", tmp_path)
    assert status == 2 and "--images has no effect on a check of data that are no file of" in err
    path = write_jsonl(tmp_path / "t.jsonl", [{"conversations": [], "image": "x"}])
    status, _, err = check(capsys, path)
    assert status == 2 and "none of its 1 rows is a dialogue that can be used" in err
    status, _, err = check(capsys, write_jsonl(path, [{"caption": "x", "image": "y"}]))
    assert status == 2 and "is no column of" in err
