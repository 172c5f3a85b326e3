"""Choices against hard negatives: by hand, over ranks, as a command and as a section."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.errors import UsageError
from mmtrain.eval.evaluators.pairs import PairsConfig
from mmtrain.eval.scheduled import check_evaluation, run_evaluation
from tests.data.shard_files import encoded, picture
from tests.eval.tiny import SIDE, LinearTowers, image_features, make_encoder, text_features
from tests.mistakes import mistake

COLOURS = ("red", "green", "blue", "white", "black", "pink", "brown")


def write_rows(folder: Path, rows: list[dict[str, Any]], *, column: str = "filepath") -> Path:
    """A manifest of pictures with the fields of each row."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, fields in enumerate(rows):
        (folder / f"{number}.png").write_bytes(encoded(picture((20, 18), seed=number), "PNG"))
        lines.append(json.dumps({column: f"{number}.png"} | fields))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "pairs.jsonl"


def right_share(images: Any, pairs: list[list[str]]) -> float:
    """Of images whose first text is nearer than each other one, in fp64."""
    wins = 0
    for image, texts in zip(images, pairs, strict=True):
        first, *others = (text_features(texts) @ image).tolist()
        wins += all(first > other for other in others)
    return wins / len(pairs)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_accuracy_is_the_share_of_images_that_prefer_their_caption(
    tmp_path: Path, batch_size: int
) -> None:
    """With one negative or several, in one field or two, some rows with fewer."""
    pairs = [
        [f"a {a} hat", *(f"a {b} hat" for b in COLOURS[:n])]
        for n, a in enumerate(("violet", "grey", "teal", "gold", "lime", "navy", "rose"), 1)
    ]
    rows = [{"caption": one, "no": two, "more": more} for one, two, *more in pairs]
    manifest = write_rows(tmp_path, rows)
    images = image_features(manifest)
    for negatives, kept in ((("no",), [p[:2] for p in pairs]), (("no", "more"), pairs)):
        config = PairsConfig(name="x", data=str(manifest), negatives=negatives)
        check_evaluation(config, PreprocessConfig(image_size=SIDE))
        result, keys = run_evaluation(make_encoder(batch_size=batch_size), config)
        assert result.figures["accuracy"] == right_share(images, kept)
        assert keys == ("accuracy",)
        scores = [outcome.score for outcome in result.outcomes]
        assert sum(scores) / len(pairs) == pytest.approx(result.figures["accuracy"])
        assert result.figures["num_negatives"] == sum(map(len, kept)) - len(kept)
        chance = sum(1 / len(one) for one in kept) / len(kept)
        assert result.figures["chance"] == pytest.approx(chance)
        assert {one.text for one in result.best + result.worst} == {one[0] for one in kept}
        assert all((one.rank == 1) == (one.predicted == one.text) for one in result.best)


class Blind(LinearTowers):
    """Every text is the same to it."""

    def encode_text(self, tokens_BT: Any) -> Any:
        return super().encode_text(tokens_BT[:1]).expand(len(tokens_BT), -1)


def test_an_equal_score_is_not_above(tmp_path: Path) -> None:
    """Else a model that tells nothing apart were perfect."""
    rows = [{"caption": f"{c} hat", "negative_caption": f"{c} cap"} for c in COLOURS]
    config = PairsConfig(name="x", data=str(write_rows(tmp_path, rows)))
    result, _ = run_evaluation(make_encoder(Blind()), config)
    assert result.figures["accuracy"] == 0.0 and result.figures["chance"] == 0.5


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"caption": "a hat"}, "no field 'negative_caption'"),
        ({"negative_caption": "a hat"}, "no field 'caption'"),
        ({"caption": "a hat", "negative_caption": " "}, "has no negative"),
        ({"caption": "a hat", "negative_caption": [" a hat"]}, "is its caption itself"),
        ({"caption": ["a", "b"], "negative_caption": "c"}, "holds 2 captions, not one"),
        ({"caption": "a hat", "negative_caption": 3}, "neither a text nor a list of texts"),
    ],
)
def test_a_row_that_is_no_pair_is_told_before_a_training(
    tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    good = {"caption": "a hat", "negative_caption": "a cap"}
    config = PairsConfig(name="mine", data=str(write_rows(tmp_path, [good, fields])))
    with pytest.raises(UsageError, match=f"^eval mine: .*{told}"):
        check_evaluation(config, PreprocessConfig(image_size=SIDE))
    with pytest.raises(UsageError, match=told):
        run_evaluation(make_encoder(), config)


def test_the_command_repeats_what_a_recipe_evaluates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In SugarCrepe's words for its columns."""
    rows = [{"caption": f"{c} hat", "negative_caption": f"{c} cap"} for c in COLOURS]
    data, run = write_rows(tmp_path / "data", rows, column="filename"), tmp_path / "run"
    section = f'[{{name = "hard", data = "{data}", image_key = "filename"}}]'
    words = ("train", "configs/debug_clip.toml", "--run-dir", str(run), "--train.steps", "2")
    assert main([*words, "--eval.pairs", section]) == 0
    told = json.loads((run / "eval/hard.json").read_text())
    given = ("--model", str(run), "--data", str(data), "--out", str(tmp_path / "out.json"))
    assert main(["eval", "pairs", *given, "--image-key", "filename"]) == 0
    again = json.loads((tmp_path / "out.json").read_text())
    assert again["accuracy"] == told["accuracy"] and again["num_samples"] == len(rows)
    assert f"{told['accuracy']:.2%}" in capsys.readouterr().out
    line = mistake(capsys, "eval", "pairs", *given, "--image-key", "filename", "--caption", "x")
    assert "--caption" in line
