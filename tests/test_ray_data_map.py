"""What a local cluster of Ray finds in data is what the plain commands find."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.loading import save_model
from tests.data.shard_files import encoded, write_shard
from tests.data.survey.pictures import landscape
from tests.serve.tiny import SIDE, TOKENIZER, tiny_clip

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'mmtrain[ray]'"
    ),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five shards with twins across them and samples that cannot be used, indexed; the current
    folder, so that relative paths are tried."""
    (tmp_path / "data").mkdir()
    for shard in range(5):
        samples = []
        for number in range(6):
            image = encoded(landscape((shard * 5 + number) % 21), "JPEG")
            text = f"a dog {number % 4}" if (shard, number) != (2, 5) else ""
            samples.append((f"{shard}-{number}", {"jpg": image, "txt": text}))
        if shard in (1, 3):
            samples.append((f"{shard}-torn", {"jpg": samples[0][1]["jpg"][:300], "txt": "torn"}))
        write_shard(tmp_path / "data" / f"{shard}.tar", samples)
    assert main(["data", "index", str(tmp_path / "data")]) == 0
    monkeypatch.chdir(tmp_path)
    return tmp_path


def on_ray(*words: str) -> tuple[int, str, str]:
    """Status, output and last line of errors."""
    command = [sys.executable, str(ROOT / "tools" / "ray_data_map.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, (done.stderr.splitlines() or [""])[-1]


def plain(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main([*words])
    told = capsys.readouterr()
    return status, told.out, (told.err.splitlines() or [""])[-1]


def test_a_check_says_what_the_command_says(folder: Path, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    status, out, last = plain(capsys, "data", "check", "data")
    found = on_ray("check", "data", "--num-shares", "3")
    assert found == (status, out, last.replace("mmtrain: ", "ray_data_map: "))
    assert status == 1 and "3 of 32 samples" in last
    with (folder / "data" / "3.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"damage")
    status, out, last = plain(capsys, "data", "check", "data")
    found = on_ray("check", "data")
    assert found == (status, out, last.replace("mmtrain: ", "ray_data_map: ")) and status == 2


def test_figures_are_those_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str]):
    status, _, last = on_ray("stats", "data", "--json", "ray.json", "--out", "ray.html")
    assert status == 0, last
    assert main(["data", "stats", "data", "--json", "one.json", "--out", "one.html"]) == 0
    for kind in ("json", "html"):
        assert (folder / f"ray.{kind}").read_bytes() == (folder / f"one.{kind}").read_bytes()


def test_features_are_those_of_the_command(folder: Path, capsys: pytest.CaptureFixture[str]):
    preprocess = PreprocessConfig(image_size=SIDE)
    save_model(folder / "model", model=tiny_clip(), tokenizer=TOKENIZER, preprocess=preprocess)
    words = ["--model", "model", "--data", "data", "--piece", "6", "--max-bad-fraction", "0.5"]
    status, out, last = on_ray("embed", *words, "--out", "ray", "--num-shares", "4")
    assert status == 0, last
    assert "wrote ray: 30 rows, 2 skipped; 6 of 6 pieces made now" in out
    assert main(["embed", *words, "--out", "one"]) == 0
    names = sorted(path.name for path in (folder / "one").iterdir())
    assert names == sorted(path.name for path in (folder / "ray").iterdir())
    for name in names:
        assert (folder / "ray" / name).read_bytes() == (folder / "one" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["stats", "data"], "nothing is asked for"),
        (["check", "nowhere.tar"], "DATA = nowhere.tar: the shard does not exist"),
        (["check", "data", "--shard-range", "0/2"], "--shard-range: Ray shares out the work"),
        (["check", "data", "--gpus", "99"], "--gpus 99: no machine has so many"),
        (["stats", "data", "--json", "a.json", "--label-key", "no"], "0 of 32 samples looked at"),
    ],
)
def test_mistakes_are_one_line(folder: Path, words: list[str], told: str) -> None:
    status, _, last = on_ray(*words)
    assert status == 2 and told in last
