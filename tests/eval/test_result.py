import errno
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from mmtrain.errors import UsageError
from mmtrain.eval import EvalResult, evaluate_retrieval, evaluate_zero_shot, write_result
from mmtrain.eval.outcomes import Outcome, read_outcomes
from mmtrain.eval.result import PICTURE_SIDE, Example, thumbnail
from tests.data.shard_files import picture
from tests.eval.tiny import make_encoder, write_captioned, write_classified

ZERO_SHOT_KEYS = {"top1", "top5", "num_samples", "num_classes"}
RETRIEVAL_KEYS = {f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
COMMON_KEYS = {"data_fingerprint", "versions", "num_samples", "preprocess", "precision"}


def an_example(text: str = "a") -> Example:
    image = thumbnail(picture((20, 20)))
    return Example(key="k", text=text, predicted="b", rank=2, num_candidates=3, picture=image)


def test_files_of_a_zero_shot_result(tmp_path: Path) -> None:
    data = write_classified(tmp_path / "a.tar", 25, num_classes=5)
    result = evaluate_zero_shot(make_encoder(), data=str(data), classes=list("abcde"))
    path = tmp_path / "run" / "eval" / "held-out.json"
    write_result(path, result, step=40)

    content = json.loads(path.read_text())
    assert content.keys() >= ZERO_SHOT_KEYS | COMMON_KEYS | {"classes_fingerprint", "step"}
    assert 0 <= content["top1"] <= content["top5"] <= 1
    assert [len(content["examples"][side]) for side in ("best", "worst")] == [10, 10]
    for row in content["examples"]["best"] + content["examples"]["worst"]:
        assert row.keys() == {"key", "text", "predicted", "rank", "num_candidates", "picture"}
        with Image.open(path.parent / row["picture"]) as image:
            assert image.format == "WEBP" and max(image.size) <= PICTURE_SIDE
    pictures = [row["picture"] for side in content["examples"].values() for row in side]
    assert len(set(pictures)) == 20


def test_files_of_a_retrieval_result(tmp_path: Path) -> None:
    data = write_captioned(tmp_path / "a.tar", [["one", "two"], ["three"]])
    result = evaluate_retrieval(make_encoder(), data=str(data), captions=["captions"])
    path = tmp_path / "r.json"
    write_result(path, result)
    content = json.loads(path.read_text())
    assert content.keys() >= RETRIEVAL_KEYS | COMMON_KEYS | {"num_images", "num_texts"}
    assert "step" not in content and not path.with_suffix(".history.jsonl").exists()


def test_history_has_a_line_of_plain_numbers_per_evaluated_step(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for step, top1 in ((10, 0.1), (20, 0.3)):
        figures = {"top1": top1, "num_samples": 5, "templates": "name", "versions": {"a": "1"}}
        write_result(path, EvalResult(figures=figures, best=[], worst=[]), step=step)
    lines = path.with_suffix(".history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 10, "top1": 0.1, "num_samples": 5},
        {"step": 20, "top1": 0.3, "num_samples": 5},
    ]
    assert json.loads(path.read_text())["top1"] == 0.3


def test_a_later_result_leaves_no_picture_of_the_earlier(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    many = EvalResult(figures={}, best=[an_example()] * 4, worst=[an_example()])
    few = EvalResult(figures={}, best=[an_example()], worst=[])
    write_result(path, many)
    write_result(path, few)
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["best-01.webp"]


def test_a_result_that_another_process_writes_too_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each removes the earlier pictures, which the other one may have done just now."""
    path, result = tmp_path / "a.json", EvalResult(figures={}, best=[an_example()], worst=[])
    write_result(path, result)
    unlink = Path.unlink

    def meanwhile(file: Path, missing_ok: bool = False) -> None:
        if file.suffix == ".webp":
            unlink(file)
        unlink(file, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", meanwhile)
    write_result(path, result)
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["best-01.webp"]


@pytest.mark.parametrize("fits", [0, 1, 3])
@pytest.mark.parametrize("step", [None, 7])
def test_a_disk_that_fills_up_leaves_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: int, step: int | None
) -> None:
    """Whole and of this evaluation, with the outcomes and the history, whatever picture is the one
    too many; the line says what is there."""
    path, written = tmp_path / "a.json", []
    write_result(path, EvalResult(figures={"top1": 0.25}, best=[an_example()] * 2, worst=[]))

    def full(file: Path, data: bytes) -> int:
        if file.suffix == ".webp":
            written.append(file.name)
            if len(written) > fits:
                raise OSError(errno.ENOSPC, "No space left on device", str(file))
        return write_bytes(file, data)

    write_bytes = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    outcome = Outcome(metric="top1", id="k", image="k", score=0.5)
    result = EvalResult(
        figures={"top1": 0.5},
        best=[an_example()] * 2,
        worst=[an_example()] * 2,
        outcomes=(outcome,),
    )
    with pytest.raises(UsageError, match=r"a\.json has the figures.*No space left") as caught:
        write_result(path, result, step=step)
    assert "\n" not in str(caught.value)
    figures = json.loads(path.read_text())
    assert figures == ({} if step is None else {"step": step}) | {"top1": 0.5}
    assert read_outcomes(path) == {"top1": {"k": outcome}}
    assert path.with_suffix(".history.jsonl").exists() == (step is not None)


def test_a_folder_of_the_results_name_keeps_its_files(tmp_path: Path) -> None:
    """`--out data.json` beside the user's folder `data`."""
    mine = tmp_path / "data" / "deep"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    (tmp_path / "data" / "my.webp").write_bytes(b"mine")
    write_result(tmp_path / "data.json", EvalResult(figures={}, best=[an_example()], worst=[]))
    assert (mine / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "data" / "my.webp").read_bytes() == b"mine"


def test_half_a_character_in_a_caption_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    result = EvalResult(figures={}, best=[an_example("fox \ud83e 狐")], worst=[])
    write_result(path, result)
    assert json.loads(path.read_text(encoding="utf-8"))["examples"]["best"][0]["text"] == "fox ? 狐"


def test_where_nothing_can_be_written_is_one_line(tmp_path: Path) -> None:
    result = EvalResult(figures={"top1": 1.0}, best=[], worst=[])
    with pytest.raises(UsageError, match=r"must end in \.json"):
        write_result(tmp_path / "a.txt", result)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_result(tmp_path / "file" / "a.json", result)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "CMYK"])
def test_thumbnails_of_any_mode_keep_their_shape(mode: str) -> None:
    image = Image.open(io.BytesIO(thumbnail(picture((600, 300), mode=mode))))
    assert image.size == (PICTURE_SIDE, PICTURE_SIDE // 2)
