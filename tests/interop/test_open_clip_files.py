"""open_clip's folders and checkpoints on disk: read, written, and read by open_clip itself."""

import json
import os
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmtrain
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.interop.open_clip_config import config_from_open_clip, config_to_open_clip
from mmtrain.loading import export_model, read_package, save_model
from mmtrain.models import Clip
from mmtrain.models.named import named_model
from tests.interop.peers import (
    CAPTIONS,
    ROOT,
    assert_same_features,
    assert_same_tensors,
    images,
    randomise,
    tiny_open_clip,
    unit,
)
from tests.interop.test_open_clip import build_theirs

PREPROCESS = {
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "interpolation": "bilinear",
    "resize_mode": "squash",
}


def write_folder(
    folder: Path, model_cfg: dict[str, Any], *, weights: str = "open_clip_model.safetensors"
) -> torch.nn.Module:
    """The hub form as open_clip writes it."""
    folder.mkdir(parents=True)
    theirs = build_theirs(model_cfg)
    content = {"model_cfg": model_cfg, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    tensors = {name: x.contiguous() for name, x in theirs.state_dict().items()}
    if weights.endswith(".safetensors"):
        save_file(tensors, folder / weights)
    else:
        torch.save(tensors, folder / weights)
    return theirs


@torch.no_grad()
def features(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours, from image files and captions to features."""
    model, preprocess, tokenizer = mmtrain.load(path)
    pixels = torch.stack([preprocess(image) for image in images()])
    assert pixels.dtype == torch.uint8
    return model.encode_image(pixels), model.encode_text(tokenizer(CAPTIONS))


@torch.no_grad()
def open_clips_features(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """open_clip's, by its own functions alone."""
    import open_clip

    name = f"local-dir:{folder}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _, preprocess = open_clip.create_model_and_transforms(name)
        tokenizer = open_clip.get_tokenizer(name)
    model.eval()
    pixels = torch.stack([preprocess(image) for image in images()])
    return unit(model.encode_image(pixels)), unit(model.encode_text(tokenizer(CAPTIONS)))


def assert_equal_everywhere(folder: Path) -> None:
    for got, want in zip(features(folder), open_clips_features(folder), strict=True):
        assert_same_features(got, want)


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_hub_folder_gives_open_clips_features(tmp_path, weights):
    """Pixels, filter, resize and tokenizer travel along."""
    text = {"text_cfg": {"tokenizer_kwargs": {"clean": "canonicalize"}}}
    write_folder(tmp_path / "hub", tiny_open_clip(**text), weights=weights)
    assert_equal_everywhere(tmp_path / "hub")
    package = read_package(tmp_path / "hub")
    assert package.preprocess == PreprocessConfig(
        image_size=32, resize_mode="squash", interpolation="bilinear"
    )
    assert package.config.vision.mean == (0.5, 0.4, 0.3)
    assert package.tokenizer.config.clean == "canonicalize"


@pytest.mark.parametrize("layout", ["CLIP", "CustomTextCLIP"])
def test_an_export_is_read_by_open_clip_and_back(tmp_path, layout):
    """Ours -> open_clip's -> ours: the same features in both, tensors bit for bit."""
    text = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True}
    model_cfg = tiny_open_clip(text_cfg=text if layout == "CustomTextCLIP" else {})
    model = randomise(Clip(config_from_open_clip(model_cfg)).init_weights(0))
    ours, out = tmp_path / "run" / "export", tmp_path / "out"
    save_model(
        ours,
        model=model,
        tokenizer=build_tokenizer(TokenizerConfig(context_length=24)),
        preprocess=PreprocessConfig(image_size=32, interpolation="bilinear"),
    )
    export_model(tmp_path / "run", out=out, form="open_clip")
    names = load_file(out / "open_clip_model.safetensors").keys()
    assert ("text.token_embedding.weight" in names) == (layout == "CustomTextCLIP")
    for got, want in zip(features(ours), open_clips_features(out), strict=True):
        assert_same_features(got, want)
    before, after = read_package(ours), read_package(out)
    assert_same_tensors(after.tensors, before.tensors)
    assert (after.config, after.preprocess) == (before.config, before.preprocess)
    export_model(out, out=tmp_path / "again", form="mmtrain")
    assert_same_tensors(read_package(tmp_path / "again").tensors, before.tensors)


def test_a_siglip_tokenizer_travels(tmp_path):
    """A SentencePiece model: open_clip reads the folder's through transformers, ids equal."""
    import open_clip

    tokenizer = build_tokenizer(
        TokenizerConfig(
            kind="sentencepiece",
            path=str(ROOT / "mmtrain/demo/debug/sentencepiece.model"),
            context_length=24,
            clean="canonicalize",
        )
    )
    text = {"no_causal_mask": True, "pool_type": "last", "vocab_size": tokenizer.vocab_size}
    model = Clip(config_from_open_clip(tiny_open_clip(text_cfg=text))).init_weights(0)
    preprocess = PreprocessConfig(image_size=32)
    save_model(tmp_path / "ours", model=model, tokenizer=tokenizer, preprocess=preprocess)
    export_model(tmp_path / "ours", out=tmp_path / "out", form="open-clip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    assert torch.equal(theirs(CAPTIONS), tokenizer(CAPTIONS))
    package = read_package(tmp_path / "out")
    assert torch.equal(package.tokenizer(CAPTIONS), tokenizer(CAPTIONS))
    assert package.tokenizer.config.clean == "canonicalize"


def training_checkpoint(folder: Path, model_cfg: dict[str, Any]) -> Path:
    """RUN/checkpoints/epoch_1.pt as open_clip's training writes it."""
    path = folder / "checkpoints" / "epoch_1.pt"
    path.parent.mkdir(parents=True)
    state = {f"module.{name}": x for name, x in build_theirs(model_cfg).state_dict().items()}
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"epoch": 1, "name": "x", "state_dict": state, "optimizer": optimizer}, path)
    return path


def test_a_training_checkpoint_with_its_config_beside_it(tmp_path):
    theirs = write_folder(tmp_path / "hub", tiny_open_clip())
    path = training_checkpoint(tmp_path, tiny_open_clip())
    shutil.copy(tmp_path / "hub" / "open_clip_config.json", path.parent)
    assert_same_tensors(read_package(path).tensors, read_package(tmp_path / "hub").tensors)
    theirs.half()
    bare = tmp_path / "hub" / "other.safetensors"
    save_file({name: x.contiguous() for name, x in theirs.state_dict().items()}, bare)
    halves = read_package(bare).tensors
    assert {x.dtype for x in halves.values()} == {torch.float32}, "fp16 files load as fp32"


def test_a_training_run_tells_its_architecture(tmp_path):
    """From params.txt, which open_clip's training writes: the named model, its activation."""
    model_cfg = config_to_open_clip(named_model("ViT-S-32"))
    model_cfg["quick_gelu"] = True
    path = training_checkpoint(tmp_path, model_cfg)
    (tmp_path / "params.txt").write_text(
        "batch_size: 64\nforce_image_size: None\nforce_quick_gelu: True\nimage_mean: None\n"
        "image_interpolation: bilinear\nmodel: ViT-S-32\nsiglip: False\n"
    )
    with pytest.raises(UsageError, match="model = ViT-S-32-quickgelu is unknown"):
        read_package(path)
    params = (tmp_path / "params.txt").read_text().replace("gelu: True", "gelu: False")
    (tmp_path / "params.txt").write_text(params)
    package = read_package(path)
    assert package.config == named_model("ViT-S-32")
    assert package.preprocess.interpolation == "bilinear"
    (tmp_path / "params.txt").write_text(params.replace("size: None", "size: 256"))
    with pytest.raises(UsageError, match="force_image_size = 256 is not read"):
        read_package(path)


def test_a_file_without_an_architecture_is_refused(tmp_path):
    path = training_checkpoint(tmp_path, tiny_open_clip())
    with pytest.raises(
        UsageError, match=r"nothing says which architecture.*open_clip_config\.json"
    ):
        read_package(path)


def openai_archive(path: Path) -> torch.nn.Module:
    """A TorchScript archive as OpenAI's files are: traced, sizes and masks among the tensors."""
    cfg = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2}
    text = {"context_length": 24, "width": 128, "heads": 2, "layers": 2}
    model = build_theirs({"embed_dim": 32, "quick_gelu": True, "vision_cfg": cfg, "text_cfg": text})
    for name, value in {"input_resolution": 32, "context_length": 24, "vocab_size": 49408}.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    example = (torch.zeros(1, 3, 32, 32), torch.zeros(1, 24, dtype=torch.long))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, example, check_trace=False).save(str(path))
    return model


@torch.no_grad()
def test_openais_own_archives_are_read_without_running_them(tmp_path):
    theirs = openai_archive(tmp_path / "ViT.pt")
    model, _, tokenizer = mmtrain.load(tmp_path / "ViT.pt")
    assert model.config.vision.transformer.activation == "quick_gelu"
    assert model.config.text.transformer.activation == "quick_gelu"
    tokens = tokenizer(CAPTIONS)
    assert_same_features(model.encode_text(tokens), unit(theirs.encode_text(tokens)))
    state = theirs.state_dict()
    assert torch.equal(model.text.embed.token.weight, state["token_embedding.weight"])


def test_an_archive_that_would_run_something_runs_nothing(tmp_path):
    """The pickle inside of an otherwise good archive is exchanged."""
    openai_archive(tmp_path / "good.pt")
    mark, path = tmp_path / "ran", tmp_path / "bad.pt"
    for payload, message in (
        (pickle.dumps(Payload(mark)), r"asks for more than tensors \(GLOBAL posix\.system\)"),
        (b"no pickle", "asks for more than tensors|no readable TorchScript archive"),
    ):
        with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as bad:
            for name in good.namelist():
                bad.writestr(name, payload if name.endswith("/data.pkl") else good.read(name))
        with pytest.raises(UsageError, match=message) as caught:
            mmtrain.load(path)
        assert not mark.exists() and "\n" not in str(caught.value)


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "x.pt"])
def test_a_pickle_that_would_run_something_runs_nothing(tmp_path, name):
    write_folder(tmp_path / "hub", tiny_open_clip())
    (tmp_path / "hub" / "open_clip_model.safetensors").unlink()
    mark, path = tmp_path / "ran", tmp_path / "hub" / name
    torch.save({"state_dict": {"logit_scale": Payload(mark)}}, path)
    with pytest.raises(UsageError, match=r"asks to run posix\.system, and nothing of it was run"):
        mmtrain.load(path if name == "x.pt" else tmp_path / "hub")
    assert not mark.exists()


def damage_config(change):
    def damage(folder: Path) -> None:
        path = folder / "open_clip_config.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def truncate(folder: Path) -> None:
    path = folder / "open_clip_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


DAMAGE = {
    "no config": (lambda f: (f / "open_clip_config.json").unlink(), "holds neither config.json"),
    "no json": (lambda f: (f / "open_clip_config.json").write_text("{"), "cannot be read"),
    "no weights": (lambda f: (f / "open_clip_model.safetensors").unlink(), "but no weights"),
    "truncated": (truncate, "cannot be read as weights"),
    "no model_cfg": (damage_config(lambda c: c.pop("model_cfg")), "model_cfg is missing"),
    **{
        f"no {tower}": (
            damage_config(lambda c, t=tower: c["model_cfg"].pop(t)),
            f"{tower} is missing",
        )
        for tower in ("vision_cfg", "text_cfg")
    },
    "a mean of words": (
        damage_config(lambda c: c["preprocess_cfg"].update(mean=["..", 0, 0])),
        "preprocess_cfg: mean = .* must be numbers",
    ),
    "no text": (
        damage_config(lambda c: c["model_cfg"].update(text_cfg=None)),
        "text_cfg is missing",
    ),
    "another width": (
        damage_config(lambda c: c["model_cfg"]["vision_cfg"].update(width=96)),
        "of another shape",
    ),
    "unknown preprocess": (
        damage_config(lambda c: c["preprocess_cfg"].update(crop=0.9)),
        "preprocess_cfg: crop = 0.9 is unknown",
    ),
    "another size": (
        damage_config(lambda c: c["preprocess_cfg"].update(size=64)),
        "size = 64 is not image_size = 32",
    ),
    "another tokenizer": (
        damage_config(lambda c: c["model_cfg"]["text_cfg"].update(hf_tokenizer_name="bert")),
        "holds no vocab.json, tokenizer.json or spiece.model",
    ),
    "a small vocabulary": (
        damage_config(lambda c: c["model_cfg"]["text_cfg"].update(vocab_size=100)),
        "of another shape",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, kind):
    damage, message = DAMAGE[kind]
    folder = tmp_path / "hub"
    write_folder(folder, tiny_open_clip())
    damage(folder)
    with pytest.raises(UsageError, match=message) as caught:
        mmtrain.load(folder)
    assert "\n" not in str(caught.value)
