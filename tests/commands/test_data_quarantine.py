"""`mmtrain data quarantine`: what a run could not use, by its file or by a checkpoint's list."""

import json
import shutil
from pathlib import Path

import pytest

from mmtrain.cli import main
from tests.data.shard_files import pairs, write_shard

TEXT = Path("configs/debug_clip.toml").read_text(encoding="utf-8")
MIXTURE = """[[data.mixture]]
name = "{name}"
train = "{train}"
weight = {weight}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs over 40 samples, of which three have no caption and one is cut: `plain`, of an epoch
    and a half, and `mixed`, with a set that is all good."""
    folder = tmp_path_factory.mktemp("quarantine")
    samples = pairs(0, 40)
    for number in (3, 17, 30):
        del samples[number][1]["txt"]
    files = samples[24][1]
    kind = next(iter(files))
    files[kind] = files[kind][: len(files[kind]) // 2]
    for shard in range(4):
        write_shard(folder / f"{shard}.tar", samples[10 * shard : 10 * shard + 10])
    train = f"{folder}/{{0..3}}.tar"
    own = 'train = "mmtrain/demo/debug/train.tar"   # 64 drawings that travel in the package'
    words = ["--train.batch_size", "12", "--train.steps", "5", "--train.checkpoint_every", "2"]
    plain = TEXT.replace(own, f'train = "{train}"')
    mixture = MIXTURE.format(name="holes", train=train, weight=0.7)
    mixture += MIXTURE.format(name="good", train="synthetic:50", weight=0.3)
    mixed = TEXT.replace(own, "").replace("[tokenizer]", f"{mixture}\n[tokenizer]", 1)
    mixed = mixed.replace("[data]", '[data]\nmixture_end = "repeat"')
    for name, text in (("plain", plain), ("mixed", mixed)):
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
        run = ["train", str(folder / f"{name}.toml"), "--run-dir", str(folder / name)]
        assert main([*run, *words, "--data.max_bad_fraction", "1"]) == 0
    return folder


def told(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    capsys.readouterr()
    assert main(["data", "quarantine", *words]) == 0
    return capsys.readouterr().out.splitlines()


def test_samples_are_counted_named_and_accounted_for(folder: Path, capsys, tmp_path: Path):
    run, found = folder / "plain", tmp_path / "found.json"
    lines = told(capsys, str(run), "--json", str(found))
    rows = [json.loads(one) for one in (run / "bad_samples.jsonl").read_text().splitlines()]
    keys = {row["key"] for row in rows}
    assert f"{len(keys)} samples could not be used, met {len(rows)} times" in lines[0]
    for key in keys:
        times = sum(row["key"] == key for row in rows)
        assert any(f"\t{times}\t{key}\t" in line for line in lines)
    assert {one["key"] for one in json.loads(found.read_text())} == keys
    planned = [row for row in rows if not row.get("is_replacement")]
    for epoch, (rest, what) in enumerate([(4, "dropped"), (16, "to come or dropped")]):
        bad = sum(row["step"] // 3 == epoch for row in planned)
        assert bad >= 1
        account = f"{40 - rest - bad} delivered + {bad} bad, replaced + {rest} {what}"
        assert f"# epoch {epoch}: 40 indexed = {account}" in lines


def test_a_checkpoint_has_the_list_too_and_a_resume_keeps_it(folder: Path, capsys, tmp_path: Path):
    from_file = told(capsys, str(folder / "plain"))[1:]
    copy = tmp_path / "copy"
    shutil.copytree(folder / "plain", copy)
    (copy / "bad_samples.jsonl").unlink()
    shutil.rmtree(copy / "checkpoints/step-00000005")
    assert main(["train", "--resume", "--run-dir", str(copy)]) == 0
    (copy / "bad_samples.jsonl").unlink()
    lines = told(capsys, str(copy / "checkpoints/step-00000005"))
    assert lines[1:] and set(lines[1:]) == {line for line in from_file if not line.startswith("#")}
    assert told(capsys, str(copy))[0] == lines[0]


def test_of_a_mixture_each_source_has_its_own(folder: Path, capsys):
    lines = told(capsys, str(folder / "mixed"))
    reasons = [line.split("\t") for line in lines if line.startswith("holes\t")]
    assert reasons and not any(line.startswith("good\t") for line in lines)
    last = json.loads((folder / "mixed/metrics.jsonl").read_text().splitlines()[-1])
    given = last["source_samples"]["good"]
    assert f"# good: {given} planned = {given} delivered + 0 bad, replaced" in lines


def test_what_is_no_run_is_refused(tmp_path: Path, capsys):
    for path in (tmp_path, tmp_path / "nothing"):
        assert main(["data", "quarantine", str(path)]) == 2
        assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recipe.toml", "[run]\ndir = 'x'\n"),
        ("recipe.toml", "[train]\nbatch_size = 'many'\n"),
        ("run.json", "{}"),
        ("run.json", '{"data": {"num_samples": null, "batches_per_epoch": "x"}}'),
        ("run.json", "[" * 100_000),
        ("metrics.jsonl", ""),
        ("metrics.jsonl", '{"step": "a"}\n'),
    ],
)
def test_a_damaged_run_is_one_line(
    folder: Path, tmp_path: Path, capsys, name: str, content: str
) -> None:
    run = shutil.copytree(folder / "plain", tmp_path / "run")
    (run / name).write_text(content)
    status = main(["data", "quarantine", str(run)])
    error = capsys.readouterr().err
    assert (status, error.count("\n")) in ((2, 1), (0, 0)) and "Traceback" not in error
    assert status == 0 or str(run) in error, error
