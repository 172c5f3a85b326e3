"""mmtrain push: a model and its card into a repository of a hub, or into a folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import mmtrain
from mmtrain.cli import main
from mmtrain.loading import hub_models
from tests.fake_model_hub import ModelHub, model_hub

TOKEN = "hf_the-token-of-the-test"
ADDRESS = "hf://me/first-clip"
WEIGHTS = {"open-clip": "open_clip_model.safetensors", "hf": "model.safetensors"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two evaluations."""
    folder = tmp_path_factory.mktemp("push") / "run"
    words = ["train", "configs/debug_clip.toml", "--run-dir", str(folder), "--train.steps", "1"]
    assert main([*words, "--model.vision.patch_dropout", "0"]) == 0
    drawings = ["--model", str(folder), "--data", "mmtrain/demo/debug/train.tar"]
    classes = ["--classes", "mmtrain/demo/debug/classes.json"]
    for kind, more in (("zero-shot", classes), ("retrieval", [])):
        out = str(folder / "eval" / f"{kind}.json")
        assert main(["eval", kind, *drawings, *more, "--out", out]) == 0
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN_PATH", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    forget()
    with model_hub() as hub:
        hub.token = TOKEN
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
    forget()


def forget() -> None:
    hub_models.PINNED.clear()
    hub_models._FETCHED.clear()


def held(hub: ModelHub) -> dict[str, bytes]:
    files = hub.files("me/first-clip")
    assert files is not None
    return files


@pytest.mark.parametrize("form", ["open-clip", "hf", "mmtrain"])
def test_what_was_pushed_is_the_run(hub, run, form, capsys):
    words = ["push", str(run), ADDRESS, "--format", form, "--license", "apache-2.0"]
    assert main([*words, "--private"]) == 0
    told = capsys.readouterr()
    assert f"pushed {hub.url}/me/first-clip at commit" in told.out
    assert TOKEN not in told.out + told.err
    assert hub.private == {"me/first-clip"}
    pushed, ours = mmtrain.load(ADDRESS)[0], mmtrain.load(run)[0]
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.allclose(pushed.encode_image(image), ours.encode_image(image), atol=1e-5)
    assert TOKEN.encode() not in b"".join(held(hub).values())


def test_the_card_says_what_the_run_says(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    out = tmp_path / "out"
    assert main(["push", str(run), ADDRESS, "--license", "mit", "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nlibrary_name: open_clip\n")
    assert len(list((run / "eval").glob("*.json"))) == 2
    for path in (run / "eval").glob("*.json"):
        result = json.loads(path.read_text())
        key = "top1" if "top1" in result else "i2t_recall@1"
        (row, *_) = [line for line in card.splitlines() if line.startswith(f"| {path.stem} |")]
        assert f"| {100 * result[key]:.2f} |" in row and " to " in row
    facts = json.loads((run / "run.json").read_text())
    assert facts["data"]["fingerprint"] in card
    assert 'mmtrain.load("hf://me/first-clip")' in card
    assert 'create_model_and_transforms("hf-hub:me/first-clip")' in card
    assert "[optim]" in card and str(run.parent) not in card


def test_what_is_to_be_known_of_results_is_in_the_card_or_told(run, tmp_path, capsys):
    own = shutil.copytree(run, tmp_path / "run")
    recipe = (own / "recipe.toml").read_text()
    evaluation = '[[eval.zero_shot]]\nname = "zero-shot"\ndata = "mmtrain/demo/debug/train.tar"\n'
    lines = [line for line in recipe.splitlines() if line != "zero_shot = []"]
    (own / "recipe.toml").write_text("\n".join([*lines, evaluation]))
    failure = {"name": "retrieval", "step": 1, "error": "no room", "repeat": "mmtrain eval"}
    (own / "eval/retrieval.failed.json").write_text(json.dumps(failure))
    (own / "eval/torn.json").write_text('{"top1": 0.')
    capsys.readouterr()
    assert main(["push", str(own), ADDRESS, "--out", str(tmp_path / "out")]) == 0
    told, card = capsys.readouterr().out, (tmp_path / "out/README.md").read_text()
    assert "results: torn.json is damaged and left out." in told
    assert "results: Evaluation retrieval failed at step 1: no room" in told
    assert "| zero-shot |" in card and "| retrieval |" not in card
    assert "zero-shot reads the training's own data: what it tells is not of images" in card


def test_a_folder_of_no_run_has_a_card_too(run, tmp_path):
    out = tmp_path / "out"
    assert main(["push", str(run / "export"), ADDRESS, "--format", "hf", "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "license:" not in card and "It was not said." in card and "## Results" not in card
    assert 'AutoModel.from_pretrained("me/first-clip")' in card


def test_files_that_are_there_stay_unless_they_may_go(hub, run, capsys):
    hub.commit("me/first-clip", {".gitattributes": b"", "open_clip_config.json": b"old"})
    hub.commit("me/first-clip", held(hub) | {"notes.txt": b"mine"})
    before = held(hub)
    assert main(["push", str(run), ADDRESS]) == 2
    line = capsys.readouterr().err
    assert "has 2 files already (notes.txt, open_clip_config.json)" in line
    assert "--overwrite" in line and line.count("\n") == 1 and held(hub) == before
    assert main(["push", str(run), ADDRESS, "--overwrite"]) == 0
    assert "replaced: open_clip_config.json; kept: notes.txt" in capsys.readouterr().out
    assert held(hub)["notes.txt"] == b"mine" and held(hub)["open_clip_config.json"] != b"old"


def test_an_empty_repository_is_filled(hub, run):
    hub.commit("me/first-clip", {".gitattributes": b""})
    assert main(["push", str(run), ADDRESS]) == 0
    assert "open_clip_model.safetensors" in held(hub)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["me/first-clip"], "begins otherwise than hf://"),
        (["hf://first-clip"], "it has no owner"),
        (["hf://me/first-clip@v1"], "names a revision"),
        (["hf://me/first-clip/"], "a slash at its end"),
        (["hf://datasets/me/x"], "these are datasets"),
        (["open_clip:ViT-B-32/openai"], "begins otherwise than hf://"),
        (["hf://me:hf_word@me/x"], "hf://***@"),
        ([ADDRESS, "--license", "Apache 2.0\nx: y"], "no name that the hub has of a licence"),
        ([ADDRESS, "--private", "--out", "OUT"], "--private has no effect with --out"),
        ([ADDRESS, "--overwrite", "--out", "OUT"], "--overwrite has no effect with --out"),
        ([ADDRESS, "--format", "onnx"], "--format"),
    ],
)
def test_mistakes_are_one_line_and_send_nothing(hub, run, words, said, tmp_path, capsys):
    words = [word.replace("OUT", str(tmp_path / "out")) for word in words]
    assert main(["push", str(run), *words]) == 2
    told = capsys.readouterr().err
    assert said in told and "hf_word" not in told and len(told.strip().splitlines()) <= 2
    assert hub.requests == [] and not (tmp_path / "out").exists()


def test_without_a_token_a_network_or_a_right_it_is_one_line(hub, run, monkeypatch, capsys):
    hub.commit("me/first-clip", {".gitattributes": b""})

    def told() -> str:
        assert main(["push", str(run), ADDRESS]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "nothing is uploaded" in told()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.status = 403
    assert "403" in told() or "gated" in told()
    hub.status = 0
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token to upload with; set HF_TOKEN" in told()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "the hub cannot be reached" in told()
