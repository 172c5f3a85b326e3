"""hf://OWNER/NAME and open_clip:NAME/TAG: fetched where a user writes one, and pinned."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmtrain
from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.storage.patience import waiting
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.interop.open_clip_tags import open_clip_repository
from mmtrain.loading import export_model, hub_models, save_model
from mmtrain.models import Clip
from mmtrain.models.named import named_model
from tests.fake_model_hub import ModelHub, model_hub
from tests.interop.decoder_folders import write_peer
from tests.loading.test_model_kinds import commands
from tests.tasks.test_vqa_run import write_recipe

REPO = "some-one/Tiny-CLIP.v1"
ADDRESS = f"hf://{REPO}"


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One small CLIP in every form, with the clutter of a published repository beside it."""
    base = tmp_path_factory.mktemp("forms")
    named = named_model("ViT-B-32-quickgelu")
    vision = replace(named.vision, image_size=32, patch_size=8)
    small = {"dim": 32, "num_layers": 1, "num_heads": 2, "head_dim": None, "ff_dim": None}
    config = replace(
        named,
        vision=replace(vision, transformer=replace(vision.transformer, **small)),
        text=replace(named.text, transformer=replace(named.text.transformer, **small)),
        embed_dim=16,
    )
    for seed in (0, 1):
        save_model(
            base / f"mmtrain{seed or ''}",
            model=Clip(config).init_weights(seed),
            tokenizer=build_tokenizer(TokenizerConfig()),
            preprocess=PreprocessConfig(image_size=32),
        )
    for form in ("open-clip", "hf", "timm"):
        export_model(base / "mmtrain", out=base / form, form=form)
    for folder in base.iterdir():
        (folder / "README.md").write_text("a card")
        (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody asked for")
        (folder / "deep").mkdir()
        (folder / "deep/model.safetensors").write_bytes(b"another model")
    return {folder.name: folder for folder in base.iterdir()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN_PATH", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    forget()
    with model_hub() as hub, waiting(0):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
    forget()


def train(folder: Path, *words: str) -> list[str]:
    """The words that train a step of a recipe without a model into folder/run."""
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f"""
[run]
dir = "{folder}/run"
[data]
train = "synthetic:16"
captions = {{ txt = 1.0 }}
[train]
steps = 1
batch_size = 4
checkpoint_every = 1
[optim]
lr = 1e-12
"""
    )
    return ["train", str(recipe), *words]


def forget() -> None:
    """As a new process."""
    hub_models.PINNED.clear()
    hub_models._FETCHED.clear()


def weights(model: Clip | Path | str) -> torch.Tensor:
    clip = model if isinstance(model, Clip) else mmtrain.load(model)[0]
    return torch.cat([x.flatten() for x in clip.state_dict().values()])


@pytest.mark.parametrize("form", ["mmtrain", "open-clip", "hf"])
def test_a_model_is_that_of_its_folder_and_nothing_else_is_fetched(hub, forms, form, capsys):
    commit = hub.add(REPO, forms[form])
    assert torch.equal(weights(ADDRESS), weights(forms[form]))
    assert f"{ADDRESS} is read at commit {commit}" in capsys.readouterr().err
    assert not any(name.endswith((".bin", ".md")) or "deep" in name for name in hub.fetched)
    forget()
    before = len([path for path in hub.requests if "/resolve/" in path])
    weights(f"{ADDRESS}@{commit}")
    assert len([path for path in hub.requests if "/resolve/" in path]) == before


def test_a_repository_of_two_forms_serves_each_reader(hub, forms, tmp_path):
    both = tmp_path / "both"
    export_model(forms["mmtrain"], out=both, form="open-clip")
    for name in ("config.json", "model.safetensors"):
        (both / name).write_bytes((forms["timm"] / name).read_bytes())
    hub.add(REPO, both)
    assert torch.equal(weights(ADDRESS), weights(forms["open-clip"]))
    words = train(tmp_path, "--model.vision_init", ADDRESS, "--model.embed_dim", "16")
    for key, value in (("dim", "32"), ("num_layers", "1"), ("num_heads", "2")):
        words += [f"--model.text.transformer.{key}", value]
    assert main(words) == 0
    trained = load_file(tmp_path / "run/export/model.safetensors")
    ours = load_file(forms["mmtrain"] / "model.safetensors")
    name = next(name for name in ours if name.startswith("vision.") and "patch" in name)
    assert torch.allclose(trained[name], ours[name], rtol=0.0, atol=1e-9)


def test_revisions(hub, forms):
    first = hub.add(REPO, forms["mmtrain"])
    hub.refs[REPO]["v1"] = hub.refs[REPO]["refs/pr/3"] = first
    second = hub.add(REPO, forms["mmtrain1"])
    assert first != second
    for revision, form in (
        ("", "mmtrain1"),
        ("@v1", "mmtrain"),
        ("@refs/pr/3", "mmtrain"),
        (f"@{first}", "mmtrain"),
    ):
        assert torch.equal(weights(ADDRESS + revision), weights(forms[form])), revision
    with pytest.raises(UsageError, match="it has no such revision"):
        mmtrain.load(f"{ADDRESS}@v7")


def test_open_clips_names_are_repositories(hub, forms):
    hub.add(open_clip_repository("ViT-B-32", "laion2b_s34b_b79k"), forms["open-clip"])
    assert torch.equal(weights("open_clip:ViT-B-32/laion2b_s34b_b79k"), weights(forms["open-clip"]))


@pytest.mark.slow  # importing open_clip
def test_the_table_is_open_clips():
    pretrained = pytest.importorskip("open_clip.pretrained")
    others = []
    for name, tags in pretrained._PRETRAINED.items():
        for tag, config in tags.items():
            try:
                found = open_clip_repository(name, tag)
            except UsageError:
                others.append((name, tag))
                continue
            assert config["hf_hub"].startswith(f"{found}/"), (name, tag)
    assert others == [("ViT-B-16-plus-240", "laion400m_e32")]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf://alone", "it has no owner"),
        ("hf:///name", "its owner is missing"),
        ("hf://", "it has no owner"),
        ("hf://a/b/c", "a whole repository"),
        ("hf://a/b/", "a slash at its end"),
        ("hf://a/b@", "no revision stands behind the @"),
        ("hf://a/b@v1@v2", "letters, digits"),
        ("hf://alone@v1", "has no owner, or is a login"),
        ("hf://me:hf_secret@a/b", "hf://\\*\\*\\*@"),
        ("hf://datasets/a/b", "these are datasets"),
        ("hf://a/*", "letters, digits"),
        ("hf://~/b", "letters, digits"),
        ("hf://a/b c", "a space in it"),
        (" hf://a/b", "a space in it"),
        ("hf:a/b", "begins otherwise than hf://"),
        ("hf:/a/b", "begins otherwise than hf://"),
        ("HF://a/b", "begins otherwise than hf://"),
        ("https://huggingface.co/a/b", "write hf://a/b"),
        ("s3://bucket/model", "copy it to this machine"),
        ("open_clip:ViT-B-32", "open_clip:NAME/TAG"),
        ("open_clip:/openai", "open_clip:NAME/TAG"),
        ("open_clip://ViT-B-32/openai", "open_clip:NAME/TAG"),
        ("Open_CLIP:ViT-B-32/openai", "open_clip:NAME/TAG"),
        ("open_clip:ViT-B-33/openai", "publishes no weights of ViT-B-33"),
        ("open_clip:ViT-B-32/laion5b", "publishes no laion5b of ViT-B-32"),
        ("hf://some-one/none", "there is no such model, or it is private"),
    ],
)
def test_mistakes_are_one_line(hub, address, said, tmp_path, capsys):
    for words in (
        ["export", address, "--out", str(tmp_path / "out")],
        train(tmp_path, "--model.init", address),
    ):
        assert main(words) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and re.search(said, lines[0]), lines
        assert "secret" not in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_same_name_is_not_guessed_at(hub, forms, tmp_path, monkeypatch, capsys):
    hub.add(REPO, forms["mmtrain"])
    monkeypatch.chdir(tmp_path)
    for path in (f"hf:/{REPO}", "open_clip:ViT-B-32/openai", "hf:own/model"):
        export_model(forms["mmtrain1"], out=tmp_path / path, form="mmtrain")
    for address in (ADDRESS, "open_clip:ViT-B-32/openai"):
        assert main(["export", address, "--out", "out"]) == 2
        line = capsys.readouterr().err
        assert re.search(r"is here too; write \./", line) and line.count("\n") == 1
    for path in (f"./hf:/{REPO}", "./open_clip:ViT-B-32/openai", "hf:own/model"):
        assert torch.equal(weights(path), weights(forms["mmtrain1"]))
    assert hub.requests == []


def test_a_pickle_is_not_fetched(hub, forms, tmp_path, capsys):
    folder = tmp_path / "pickled"
    export_model(forms["mmtrain"], out=folder, form="open-clip")
    torch.save(load_file(folder / "open_clip_model.safetensors"), folder / "open_clip_model.bin")
    (folder / "open_clip_model.safetensors").unlink()
    hub.add(REPO, folder)
    assert main(["export", ADDRESS, "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert "open_clip_model.bin alone, a pickle" in line and line.count("\n") == 1
    assert not any(name.endswith(".bin") for name in hub.fetched)


@pytest.mark.parametrize("how", ["off", "away"])
def test_without_the_hub(hub, forms, how, tmp_path, monkeypatch, capsys):
    hub.add(REPO, forms["mmtrain"])
    weights(ADDRESS)
    forget()
    if how == "off":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    capsys.readouterr()
    assert torch.equal(weights(ADDRESS), weights(forms["mmtrain"]))
    assert "read as it was when last fetched" in capsys.readouterr().err
    for address in ("hf://some-one/other", f"{ADDRESS}@v1", f"{ADDRESS}@{'f' * 40}"):
        assert main(["export", address, "--out", str(tmp_path / "out")]) == 2
        lines = [one for one in capsys.readouterr().err.splitlines() if " is read at " not in one]
        assert len(lines) == 1, lines
        assert re.search(r"copy \S+/hf/hub/models--some-one--\S+ from a machine", lines[0])


@pytest.mark.parametrize(("status", "said"), [(401, "private"), (403, "gated"), (500, "500")])
def test_what_the_hub_refuses_is_one_line(hub, status, said, tmp_path, capsys):
    hub.status = status
    assert main(["export", ADDRESS, "--out", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


def test_the_token_goes_to_the_hub_and_into_no_record(hub, forms, tmp_path, monkeypatch, capsys):
    hub.add(REPO, forms["mmtrain"])
    hub.token = "hf_secret-of-the-test"
    assert main(["export", ADDRESS, "--out", str(tmp_path / "x")]) == 2
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert main(train(tmp_path, "--model.init", ADDRESS)) == 0
    told = capsys.readouterr()
    assert hub.token not in told.out + told.err
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or hub.token.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_run_keeps_its_commits(hub, forms, tmp_path, capsys):
    commit = hub.add(REPO, forms["mmtrain"])
    terms = f'[{{kind = "distill", teacher = "{ADDRESS}"}}]'
    words = train(tmp_path, "--model.init", ADDRESS, "--loss.terms", terms)
    assert main(words) == 0
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["models"] == {ADDRESS: f"{ADDRESS}@{commit}"}
    assert f'init = "{ADDRESS}@{commit}"' in (tmp_path / "run/recipe.toml").read_text()
    hub.add(REPO, forms["mmtrain1"])  # main moves on, and the run does not follow
    for again in ([*words, "--resume"], ["train", "--resume", str(tmp_path / "run")]):
        forget()
        assert main(again) == 0, capsys.readouterr().err
        facts = json.loads((tmp_path / "run/run.json").read_text())
        assert facts["models"] == {ADDRESS: f"{ADDRESS}@{commit}"}
        assert f"is read at commit {commit}" in capsys.readouterr().err
    forget()
    assert main([*words, "--resume", "--model.init", f"{ADDRESS}@main"]) == 2
    assert "model.init" in capsys.readouterr().err


def test_every_command_takes_an_address(hub, tmp_path):
    """What takes a model's path asks the hub, which has none."""
    write_recipe(tmp_path)
    taking = commands(tmp_path, "hf://some-one/none", tmp_path)
    suite = ["eval", "suite", "clip_benchmark", "--models", "hf://some-one/none"]
    taking["eval suite"] = ("clip", [*suite, "--root", str(tmp_path), "--out", str(tmp_path / "s")])
    for name, (_, words) in taking.items():
        hub.requests.clear()
        assert main(words) == 2, name
        assert "/api/models/some-one/none/revision/main" in hub.requests, name


def test_a_result_says_what_was_fetched(hub, forms, tmp_path):
    commit = hub.add(REPO, forms["hf"])
    words = ["eval", "retrieval", "--model", ADDRESS, "--data", "synthetic:8"]
    assert main([*words, "--out", str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["model"] == f"{ADDRESS}@{commit}"
    words[:2] = ["embed"]
    assert main([*words, "--out", str(tmp_path / "e")]) == 0
    assert json.loads((tmp_path / "e/embed.json").read_text())["model"] == f"{ADDRESS}@{commit}"


def test_a_decoder_is_fetched_too(hub: ModelHub, tmp_path, capsys):
    write_peer("smollm2", tmp_path / "decoder")
    tensors = load_file(tmp_path / "decoder/model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2]}
    parts["model-00002-of-00002.safetensors"] = names[1::2]
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, tmp_path / "decoder" / part)
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    (tmp_path / "decoder/model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "decoder/model.safetensors").unlink()
    hub.add("some-one/words", tmp_path / "decoder")
    decoder, tokenizer = mmtrain.load_decoder("hf://some-one/words")
    assert tokenizer is None or tokenizer.end_ids is not None
    assert sum(x.numel() for x in decoder.state_dict().values()) > 0
