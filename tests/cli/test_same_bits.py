"""An evaluation's files are the same to the byte however it is run."""

import itertools
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from mmtrain.cli import main
from mmtrain.commands import evaluate, vqa
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.eval.encode import Encoder, encode_image_batch
from mmtrain.eval.forward_size import FIXED_BATCH
from mmtrain.eval.questions.answering import Answered, answer_all
from mmtrain.loading import save_model
from tests.data.shard_files import encoded, picture, write_shard
from tests.ranks import run_ranks
from tests.serve.tiny import SIDE, TOKENIZER, tiny_clip
from tests.tasks.test_vqa_run import write_recipe

COUNT = 2 * FIXED_BATCH + 11
BATCHES = (1, 2, 7, 32)
KINDS = ("zero-shot", "retrieval", "knn", "linear-probe")
EACH = [
    ("retrieval", "fp32"),
    ("zero-shot", "bf16"),
    *(pytest.param(kind, "fp32", marks=pytest.mark.slow) for kind in KINDS if kind != "retrieval"),
    *(pytest.param(kind, "bf16", marks=pytest.mark.slow) for kind in KINDS[1:3]),
]
"""A fit is of features, whatever precision they were made in: the others have bf16."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, and pictures with classes and captions."""
    folder = tmp_path_factory.mktemp("place")
    preprocess = PreprocessConfig(image_size=SIDE)
    save_model(folder / "m", model=tiny_clip(), tokenizer=TOKENIZER, preprocess=preprocess)
    samples = []
    for number in range(COUNT):
        words = " ".join(["dot", "blue", "red", "square"][: 1 + number % 4])
        files = {"txt": f"{words} {number}", "cls": str(number % 5)}
        image = encoded(picture((17 + number % 7, 18), seed=number), "PNG")
        samples.append((f"{number:05d}", {"png": image, **files}))
    write_shard(folder / "a.tar", samples)
    # The same samples in other orders: rows of a shard, and shards.
    shuffled = [samples[place] for place in np.random.default_rng(0).permutation(COUNT)]
    write_shard(folder / "shuffled.tar", shuffled)
    for number in range(3):
        write_shard(folder / f"part-{number}.tar", samples[50 * number : 50 * number + 50])
    (folder / "classes.txt").write_text("dot\nblue dot\nsquare\nred thing\nnothing at all\n")
    return folder


def commands(place: Path, *shards: str) -> dict[str, list[str]]:
    data = [str(place / shard) for shard in shards or ("a.tar",)]
    classes = ["--classes", str(place / "classes.txt"), "--label-key", "cls"]
    both = ["--train", *data, "--test", *data, *classes]
    model = ["--model", str(place / "m")]
    return {
        "zero-shot": ["eval", "zero-shot", *model, "--data", *data, *classes],
        "retrieval": ["eval", "retrieval", *model, "--data", *data],
        "knn": ["eval", "knn", *model, *both],
        "linear-probe": ["eval", "linear-probe", *model, *both],
    }


def found_by(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A result's figures but for the data's fingerprints, and its outcomes by metric and id."""
    figures = json.loads((folder / "r.json").read_text())
    for key in ("data_fingerprint", "train_fingerprint", "examples"):
        figures.pop(key, None)
        figures.get("provenance", {}).pop(key, None)
    lines = (folder / "r.outcomes.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return figures, {f"{row['metric']} {row['id']}": row for row in rows}


@pytest.mark.parametrize(("kind", "precision"), EACH)
def test_the_order_of_the_samples_changes_no_bit(
    place: Path, tmp_path: Path, kind: str, precision: str
) -> None:
    found = []
    parts = [f"part-{number}.tar" for number in range(3)]
    for number, shards in enumerate((["a.tar"], ["shuffled.tar"], parts, parts[::-1])):
        words = [*commands(place, *shards)[kind], "--precision", precision]
        assert main([*words, "--out", str(tmp_path / str(number) / "r.json")]) == 0
        found.append(found_by(tmp_path / str(number)))
    assert len(found[0][1]) >= COUNT
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("form", ["float16", "float32"])
def test_pieces_and_order_change_no_feature(place: Path, tmp_path: Path, form: str) -> None:
    found = []
    for number, (shard, piece) in enumerate(
        (("a", 1000), ("a", 7), ("a", 64), ("a", 100), ("shuffled", 1000), ("shuffled", 33))
    ):
        words = ["--data", str(place / f"{shard}.tar"), "--dtype", form, "--piece", str(piece)]
        out = tmp_path / str(number)
        assert main(["embed", "--model", str(place / "m"), *words, "--out", str(out)]) == 0
        keys = [
            key for path in sorted(out.glob("keys-*.json")) for key in json.loads(path.read_text())
        ]
        rows = np.concatenate([np.load(path) for path in sorted(out.glob("*.npy"))])
        found.append({key: row.tobytes() for key, row in zip(keys, rows, strict=True)})
    assert len(found[0]) == COUNT
    assert all(each == found[0] for each in found)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`eval vqa` of a model of random weights that chooses and writes."""
    folder = tmp_path_factory.mktemp("answers")
    path = write_recipe(folder, num=COUNT)
    assert main(["train", str(path), "--run-dir", str(folder / "run"), "--train.steps", "2"]) == 0
    files = ["questions", "annotations"]
    named = [word for one in files for word in (f"--{one}", str(folder / f"{one}.json"))]
    return ["eval", "vqa", "--model", str(folder / "run"), "--data", str(folder / "images"), *named]


def written(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("kind", "precision"), EACH)
def test_the_batch_size_and_workers_change_no_bit(
    place: Path, tmp_path: Path, kind: str, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*commands(place)[kind], "--precision", precision]
    # The search is in the tests of order and of ranks.
    words += ["--strengths", "1", "0.1"] if kind == "linear-probe" else []
    found = []
    for number, batch in enumerate((None, *BATCHES)):
        options = [] if batch is None else ["--batch-size", str(batch)]
        options += ["--workers", "2"] if batch == 7 else []
        out = tmp_path / str(number)
        assert main([*words, *options, "--out", str(out / "r.json")]) == 0
        told = f"--batch-size {batch} has no effect without --fast: forwards are of {FIXED_BATCH}"
        assert (told in capsys.readouterr().err) == (batch is not None)
        found.append(written(out))
    assert all(each == found[0] for each in found)
    assert b"fast" not in found[0]["r.json"]


@pytest.mark.parametrize("head", ["classify", "generate"])
def test_the_batch_size_changes_no_answer(answers: list[str], tmp_path: Path, head: str) -> None:
    found = []
    for number, batch in enumerate((1, 7, 32)):
        out = tmp_path / str(number)
        options = [
            "--batch-size",
            str(batch),
            "--predictions",
            str(tmp_path / f"said-{number}.json"),
        ]
        assert main([*answers, "--head", head, *options, "--out", str(out / "r.json")]) == 0
        found.append(written(out) | {"said": (tmp_path / f"said-{number}.json").read_bytes()})
    assert all(each == found[0] for each in found)


def in_shards(folder: Path, answers: list[str], *, shuffled: bool) -> list[str]:
    """The command over a shard of the set, where later images have longer questions; shuffled,
    its images and their questions stand in another order."""
    named = dict(itertools.pairwise(answers))
    files = [f"--{one}" for one in ("questions", "annotations")]
    words = ["--images", named["--data"], *(word for one in files for word in (one, named[one]))]
    assert main(["data", "vqa", *words, "--out", str(folder / "shards")]) == 0
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(folder / "shards/00000.tar") as shard:
        for entry in shard:
            key, _, extension = entry.name.partition(".")
            held = shard.extractfile(entry)
            assert held is not None
            samples.setdefault(key, {})[extension] = held.read()
    rows = list(samples.items())
    for key, files_of in rows:
        fields = json.loads(files_of["json"])
        for question in fields["questions"]:
            question["question"] += " and why" * (int(key) > FIXED_BATCH)
        fields["questions"] = fields["questions"][:: -1 if shuffled else 1]
        files_of["json"] = json.dumps(fields).encode()
    if shuffled:
        rows = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    path = write_shard(folder / "set.tar", rows)
    return [*answers[: answers.index("--data") + 1], str(path)]


@pytest.mark.parametrize("head", ["classify", "generate"])
def test_the_order_of_the_samples_changes_no_answer(
    answers: list[str], tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a question, of its image and of all of them: what a file has, and each probability."""
    answered: list[Answered] = []

    def kept(*args: Any, **options: Any) -> list[Answered]:
        answered[:] = answer_all(*args, **options)
        return answered

    monkeypatch.setattr("mmtrain.commands.vqa.answer_all", kept)
    found = []
    for shuffled in (False, True):
        folder = tmp_path / str(shuffled)
        words = [*in_shards(folder, answers, shuffled=shuffled), "--head", head]
        said = ["--predictions", str(folder / "said.json"), "--out", str(folder / "r.json")]
        assert main([*words, *said]) == 0
        figures, outcomes = found_by(folder)
        rows = {row["question_id"]: row for row in json.loads((folder / "said.json").read_text())}
        exact = {one.question.question_id: one.probability for one in answered}
        found.append((figures, outcomes, rows, exact))
    assert len(found[0][1]) == len(found[0][2]) == len(found[0][3]) > COUNT
    assert found[0] == found[1]


def test_fast_takes_the_batch_size_and_says_so(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def counted(encoder: Encoder, images_BCHW: Tensor) -> Tensor:
        taken.append(len(images_BCHW))
        return encode_image_batch(encoder, images_BCHW)

    monkeypatch.setattr("mmtrain.eval.samples.encode_image_batch", counted)
    for words, sizes in (
        ([], [FIXED_BATCH, FIXED_BATCH, 11]),
        (["--fast"], [COUNT]),
        (["--fast", "--batch-size", "100"], [100, COUNT - 100]),
    ):
        taken.clear()
        out = tmp_path / "r.json"
        assert main([*commands(place)["zero-shot"], *words, "--out", str(out)]) == 0
        assert taken == sizes
        assert ('"fast_batch_size"' in out.read_text()) == bool(words)


ON_RANKS = {
    ("zero-shot", "linear-probe"): ((1, 0), (7, 2)),
    ("retrieval", "knn"): ((2, 2), (32, 0)),
    ("classify", "generate"): ((7, 0), (1, 2)),
}
"""By kinds: batch sizes and workers. On one rank each kind has all sizes above."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kinds", ON_RANKS)
def test_two_ranks_change_no_byte(
    place: Path, answers: list[str], tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    """By any batch size, with workers and without, against the plain command on one rank; and the
    set in another order, which workers read."""
    lines: list[list[str]] = []
    for kind in kinds:
        if kind in ("classify", "generate"):
            plain, shuffled = (
                [
                    *in_shards(tmp_path / kind / str(turned), answers, shuffled=turned),
                    *("--head", kind),
                ]
                for turned in (False, True)
            )
        else:
            plain, shuffled = (commands(place, shard)[kind] for shard in ("a.tar", "shuffled.tar"))
        assert main([*plain, "--out", str(tmp_path / kind / "plain" / "r.json")]) == 0
        for batch, workers in ON_RANKS[kinds]:
            more = ["--workers", str(workers)]
            lines += ways([*plain, *more], tmp_path / kind / "on-2", batch)
        lines += ways([*shuffled, "--workers", "1"], tmp_path / kind / "turned", 5)
    run_ranks(run_all, 2, lines)
    for kind in kinds:
        expected = written(tmp_path / kind / "plain")
        for batch, _ in ON_RANKS[kinds]:
            assert written(tmp_path / kind / "on-2" / str(batch)) == expected, (kind, batch)
        figures, outcomes = found_by(tmp_path / kind / "plain")
        assert (figures, outcomes) == found_by(tmp_path / kind / "turned/5"), kind
        assert len(outcomes) >= COUNT


def ways(words: list[str], out: Path, *batches: int) -> list[list[str]]:
    """A command with each batch size, and a result for each."""
    return [
        [*words, "--batch-size", str(batch), "--out", str(out / str(batch) / "r.json")]
        for batch in batches
    ]


def run_all(_: int, lines: list[list[str]]) -> None:
    """Run commands on this rank, which stays one of them."""
    for module in (evaluate, vqa):
        module.leave_ranks = lambda: None  # pyright: ignore[reportPrivateImportUsage]
    for words in lines:
        assert main(words) == 0
