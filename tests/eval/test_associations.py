"""The images that a word goes with: WinoGAViL's table and its Jaccard index."""

import csv
import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from mmtrain.data.sources.open import open_source
from mmtrain.errors import UsageError
from mmtrain.eval.associations import (
    Association,
    _by_size,
    _chance,
    evaluate_associations,
    read_associations,
)
from mmtrain.eval.encode import encode_texts
from mmtrain.eval.intervals import INTERVALS
from tests.data.shard_files import encoded, picture
from tests.eval.tiny import image_features, make_encoder

NAMES = ("eagle", "teepee", "nail polish", "metal", "ash", "tea", "pile", "rose", "horn", "loo")
ROWS = (
    ("bald", NAMES[:5], ("eagle", "ash")),
    ("plush", NAMES[:5], ("teepee", "ash")),
    ("Owl", NAMES, ("tea", "pile", "rose")),
    ("thorn", NAMES, ("horn",)),
    ("load", NAMES[2:9], ("metal", "ash", "rose")),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and the same rows as a table and as .jsonl."""
    root = tmp_path_factory.mktemp("winogavil")
    (root / "images").mkdir()
    for number, name in enumerate((*NAMES, "unused")):
        image = picture((20 + number, 18), seed=number)
        (root / "images" / f"{name}.jpg").write_bytes(encoded(image, "JPEG"))
    with (root / "table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["candidates", "cue", "associations", "num_candidates", "ID"])
        for number, (cue, candidates, right) in enumerate(ROWS):
            row = [json.dumps(candidates), cue, json.dumps(right), len(candidates), number]
            writer.writerow(row)
    rows = [
        json.dumps({"cue": cue, "candidates": candidates, "associations": right})
        for cue, candidates, right in ROWS
    ]
    (root / "table.jsonl").write_text("\n".join(rows) + "\n")
    return root


def test_the_index_is_scikit_learns_over_datacomps_loop(folder: Path) -> None:
    """Their loop, transcribed: prompt, cosine, as many as there are associations, Jaccard."""
    source = open_source(str(folder / "images"))
    names = [Path(source.key(number)).stem for number in range(source.num_samples)]
    features = dict(zip(names, image_features(folder / "images").numpy(), strict=True))
    theirs: list[float] = []
    for cue, candidates, right in ROWS:
        prompt = f"An {cue.lower()}" if cue.lower()[0] in "aeiou" else f"A {cue.lower()}"
        text = encode_texts(make_encoder(), [prompt])[0].double().numpy()
        logits = np.array([features[name] @ text for name in candidates])
        chosen = np.isin(np.arange(len(candidates)), np.argsort(logits)[-len(right) :])
        theirs.append(float(jaccard_score(np.isin(candidates, right), chosen)))
    for table in ("table.csv", "table.jsonl"):
        asked = read_associations(folder / table, source)
        found = evaluate_associations(make_encoder(), source, asked)
        assert [one.score for one in found.outcomes] == theirs
        assert found.figures["jaccard"] == pytest.approx(np.mean(theirs))
        assert found.figures["jaccard_5_6"] == pytest.approx(np.mean(theirs[:2]))
        assert found.figures["jaccard_10_12"] == pytest.approx(np.mean(theirs[2:4]))
        assert (found.figures["num_samples"], found.figures["num_images"]) == (5, 10)
    assert len(set(theirs)) > 1
    assert found.outcomes[2].wanted == "tea, pile, rose"
    assert found.outcomes[0].image == found.outcomes[1].image != found.outcomes[2].image


def test_words_about_the_same_images_are_drawn_together() -> None:
    """In whatever order they are named: all of one board are no spread at all."""
    boards = [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0)]
    asked = [
        Association(id="", cue="x", candidates=("a",) * 5, images=images, wanted=(0,))
        for images in (*boards, *boards)
    ]
    assert _by_size(asked, [0.0, 1.0, 0.0, 1.0])[INTERVALS] == {}
    others = [replace(one, images=(5, 6, 7, 8, 9)) for one in asked[:2]]
    assert _by_size([*asked, *others], [0.0, 1.0] * 3)[INTERVALS]["jaccard_5_6"] == (0.5, 0.5)


@pytest.mark.parametrize(("num", "right"), [(5, 2), (6, 5), (4, 4), (12, 1)])
def test_chance_is_the_mean_over_all_choices(num: int, right: int) -> None:
    wanted = set(range(right))
    every = [len(wanted & set(c)) / len(wanted | set(c)) for c in combinations(range(num), right)]
    assert _chance(num, right) == pytest.approx(sum(every) / len(every))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ('{"cue": "x", "candidates": ["eagle", "owl"], "associations": ["eagle"]}',
         "jsonl:1: no image is called 'owl'"),
        ('{"cue": "x", "candidates": ["eagle"], "associations": ["tea"]}',
         "the association 'tea' is none of the candidates"),
        ('{"cue": " ", "candidates": ["eagle"], "associations": ["eagle"]}', "jsonl:1 has no cue"),
        ('{"cue": "x", "candidates": "[", "associations": ["eagle"]}',
         "candidates is no list of names"),
        ('{"cue": "x", "candidates": ["tea", "tea"], "associations": ["tea"]}', "an image twice"),
        ('{"cue": "x", "candidates": ["tea"]}', "associations is no list of names"),
        ("[1]", "row is no JSON object"),
        ("{", "row is no JSON"),
        ('{"word": "x"}', "has no column cue; it has word"),
        ("", "has no rows"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_one_line(folder: Path, tmp_path: Path, row: str, told: str) -> None:
    (tmp_path / "rows.jsonl").write_text(row)
    with pytest.raises(UsageError, match=told) as caught:
        read_associations(tmp_path / "rows.jsonl", open_source(str(folder / "images")))
    assert len(str(caught.value).splitlines()) == 1


HEADER = "candidates,cue,associations\n"
ROW = '"[""eagle"", ""tea""]",bald,"[""tea""]"'


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", HEADER + ROW + ",more\n", "another number of columns"),
        ("a.csv", HEADER + ROW.replace(']",bald', "],bald") + "\n", "a quote that is not closed"),
        ("a.csv", HEADER.replace("cue", "cue,cue"), "its header has 'cue' twice"),
        ("a.csv", HEADER.upper() + ROW, "has no column cue; it has CANDIDATES, CUE"),
        ("a.csv", HEADER + "['eagle'],bald,['tea']\n", "candidates is no list of names"),
        ("a.csv", HEADER + "[" * 100_000 + ",bald,[]\n", "candidates is no list of names"),
        ("a.csv", HEADER + "x" * 200_000 + ",bald,[]\n", "a.csv:2: row"),
        ("a.csv", HEADER, "has no rows"),
        ("a.txt", HEADER + ROW, "must end in .csv or .tsv or"),
    ],
)
def test_a_damaged_table_is_one_line(
    folder: Path, tmp_path: Path, name: str, text: str, told: str
) -> None:
    """csv.DictReader passes surplus cells and a column twice, and raises errors of its own."""
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=told) as caught:
        read_associations(tmp_path / name, open_source(str(folder / "images")))
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 300


def test_tables_of_other_programs_are_read(folder: Path, tmp_path: Path) -> None:
    """A mark and line ends of Windows, semicolons, an array of rows; no ID is the row's number."""
    source = open_source(str(folder / "images"))
    (tmp_path / "a.csv").write_bytes(f"\ufeff{HEADER}{ROW}\n".replace("\n", "\r\n").encode())
    (tmp_path / "b.csv").write_text(
        "candidates;cue;associations\n" + ROW.replace('",b', '";b').replace("d,", "d;")
    )
    row = {"cue": "bald", "candidates": ["eagle", "tea"], "associations": ["tea"], "ID": None}
    (tmp_path / "c.json").write_text(json.dumps([row]))
    first, *others = (read_associations(path, source) for path in sorted(tmp_path.iterdir()))
    assert others == [first, first]
    assert (first[0].id, first[0].candidates, first[0].wanted) == ("0", ("eagle", "tea"), (1,))


def test_two_images_of_a_name_are_one_line(folder: Path, tmp_path: Path) -> None:
    for inside in ("a", "b"):
        (tmp_path / inside).mkdir()
        (tmp_path / inside / "tea.jpg").write_bytes((folder / "images/tea.jpg").read_bytes())
    (tmp_path / "rows.jsonl").write_text(
        '{"cue": "x", "candidates": ["tea"], "associations": ["tea"]}'
    )
    source = open_source(f"captions:{tmp_path}")
    with pytest.raises(UsageError, match="2 images are called 'tea'"):
        read_associations(tmp_path / "rows.jsonl", source)
