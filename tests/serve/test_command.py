"""`mmtrain serve`: its mistakes in one line, and where it listens."""

import importlib.util
import socket
from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.loading import save_model
from mmtrain.serve import command
from tests.serve.tiny import SIDE, TOKENIZER, tiny_clip
from tests.tasks.test_vqa_run import write_recipe

SHORT = ["--train.steps", "1", "--train.checkpoint_every", "1", "--eval.vqa", "[]"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "a_run" / "export"
    save_model(
        folder,
        model=tiny_clip(),
        tokenizer=TOKENIZER,
        preprocess=PreprocessConfig(image_size=SIDE),
    )
    return folder


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a mistaken command ends with."""
    assert main(["serve", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mmtrain: error: "), lines
    return lines[0]


def test_the_extra_is_named(monkeypatch, capsys, model: Path):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    told = mistake(capsys, "--model", str(model))
    assert "needs the package uvicorn; pip install 'mmtrain[serve]'" in told


def test_mistakes(capsys, model: Path, tmp_path: Path):
    free = ("--port", "0")
    assert "--model" in mistake(capsys)
    assert "model = nowhere" in mistake(capsys, "--model", "nowhere", *free)
    told = mistake(capsys, "--model", str(model), "--index", str(tmp_path / "x.tar"), *free)
    assert "index = " in told and "does not exist" in told
    assert "at most 65535" in mistake(capsys, "--model", str(model), "--port", "70000")
    assert "at least 0" in mistake(capsys, "--model", str(model), "--port", "-1")
    told = mistake(capsys, "--model", str(model), "--host", "no.such.name.invalid", *free)
    assert "host = no.such.name.invalid" in told and "with --host" in told
    assert "device = tpu" in mistake(capsys, "--model", str(model), "--device", "tpu", *free)


def test_a_port_that_is_taken(capsys, model: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = mistake(capsys, "--model", str(model), "--port", port)
    assert f"port = {port} cannot be listened on (Address already in use)" in told
    assert "--port" in told


def test_where_it_listens(monkeypatch, capsys, model: Path):
    """On this machine alone; Ctrl-C is how it ends."""
    import uvicorn

    seen = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        seen.append((sockets[0].getsockname(), server.config))
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert main(["serve", "--model", str(model), "--port", "0"]) == 0
    ((address, port), config) = seen[0]
    assert address == "127.0.0.1" and config.limit_concurrency
    assert capsys.readouterr().out == f"http://127.0.0.1:{port}  (a_run; Ctrl-C ends it)\nended\n"
    assert command._name(model) == command._name(model.parent) == "a_run"


def test_a_model_that_answers(monkeypatch, capsys, tmp_path: Path):
    """It is asked; what only a CLIP has is refused before anything is read."""
    import uvicorn

    recipe, run_dir = write_recipe(tmp_path), str(tmp_path / "r")
    assert main(["train", str(recipe), *SHORT, "--run-dir", run_dir]) == 0
    capsys.readouterr()
    told = mistake(capsys, "--model", run_dir, "--index", "a.tar", "--port", "0")
    assert "index = a.tar" in told and "answers questions" in told and "leave --index away" in told
    words = ("--architecture", "ViT-B-32", "--port", "0")
    assert "is for a CLIP's weights" in mistake(capsys, "--model", run_dir, *words)

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", run)
    assert main(["serve", "--model", str(tmp_path / "r" / "export"), "--port", "0"]) == 0
    address, told = capsys.readouterr().out.splitlines()[0].split("  ")
    assert address.startswith("http://127.0.0.1:")
    assert told == "(r; ask it about an image; Ctrl-C ends it)"
