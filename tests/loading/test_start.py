"""What a model that a run starts from brings, and what is said where the recipe contradicts it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mmtrain
from mmtrain.build.resolve import resolve, run_tokenizer
from mmtrain.build.run import Run, build_run
from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.loading import export_model, save_model
from mmtrain.loading.start import read_start
from mmtrain.models import Clip, ClipConfig
from mmtrain.parallel.mesh import build_layout, pick_device
from mmtrain.recipe import load_recipe
from mmtrain.settings.decode import dump_toml, encode
from tests.parallel.tiny_clip import siglip_config, tiny_config

SENTENCES = TokenizerConfig(
    kind="sentencepiece",
    path="mmtrain/demo/debug/sentencepiece.model",
    context_length=16,
    clean="canonicalize",
)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A CLIP that squashes bilinearly and a SigLIP of the same words, and the latter as others."""
    folder = tmp_path_factory.mktemp("starts")
    tokenizer = build_tokenizer(SENTENCES)
    for kind, config in (("clip", tiny_config()), ("siglip", siglip_config())):
        text = replace(
            config.text,
            vocab_size=tokenizer.vocab_size,
            context_length=16,
            end_token_id=tokenizer.eot_id,
        )
        bias = None if kind == "clip" else -10.0
        vision = replace(config.vision, patch_dropout=0.0, projection=kind == "clip")
        config = replace(config, vision=vision, text=text, init_logit_bias=bias, embed_dim=32)
        save_model(
            folder / kind,
            model=Clip(config).init_weights(0),
            tokenizer=tokenizer,
            preprocess=PreprocessConfig(
                image_size=32, resize_mode="squash", interpolation="bilinear"
            ),
        )
    export_model(folder / "siglip", out=folder / "hf", form="hf")
    return {path.name: path for path in folder.iterdir()}


def recipe(folder: Path, text: str = "", **changes: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(
        f"""
[run]
dir = "{folder}/run"
[data]
train = "mmtrain/demo/debug/train.tar"
{changes.get("data", "")}
[train]
steps = 1
batch_size = 8
[model]
{changes.get("model", "")}
{text}
"""
    )
    return path


def build(path: Path, *words: str) -> Run:
    read = load_recipe(path, list(words))
    return build_run(read, build_layout(read.parallel, pick_device("cpu")))


@pytest.mark.parametrize("name", ["clip", "siglip", "hf"])
def test_a_start_brings_its_loss_its_resize_and_its_tokenizer(
    name: str, starts: dict[str, Path], tmp_path: Path
) -> None:
    """A SigLIP goes on as one, whatever library wrote it; nothing of that is worth a line."""
    run = build(recipe(tmp_path, model=f'init = "{starts[name]}"'))
    read = run.recipe
    assert read.loss.kind == ("clip" if name == "clip" else "siglip")
    assert (read.data.resize_mode, read.data.interpolation) == ("squash", "bilinear")
    assert run.preprocess.resize_mode == "squash"
    # SigLIP's own tokenizer in transformers cleans by itself.
    cleaning = {"hf": ("siglip", "none")}.get(name, ("sentencepiece", "canonicalize"))
    assert (run.data.tokenizer.config.kind, run.data.tokenizer.config.clean) == cleaning
    assert run.notes == ()
    # What is recorded means the same without the rules.
    (tmp_path / "recorded.toml").write_text(dump_toml(encode(read)))
    again = load_recipe(tmp_path / "recorded.toml")
    start = read_start(again.model.init)
    assert resolve(again, run_tokenizer(again, start)) == read
    assert build(tmp_path / "recorded.toml").notes == ()


OWN = f'kind = "sentencepiece"\npath = "{SENTENCES.path}"'


@pytest.mark.parametrize(("name", "tokenizer"), [("clip", ""), ("siglip", OWN), ("hf", "")])
def test_plan_and_summary_count_with_the_tokenizer_of_the_run(
    name: str,
    tokenizer: str,
    starts: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As many parameters and tokens as the run has: its start's, or those of its own section."""
    section = f"[tokenizer]\n{tokenizer}\ncontext_length = 24" if tokenizer else ""
    path = recipe(tmp_path, section, model=f'init = "{starts[name]}"')
    run = build(path)
    capsys.readouterr()
    assert main(["plan", str(path), "--world-size", "1", "--train.device", "cpu"]) == 0
    memory = capsys.readouterr().out.splitlines()[3].split()
    in_stages = run.num_parameters - (1 if name == "clip" else 2)
    assert memory[1] == f"{in_stages / 1e6:,.2f}"
    assert main(["summary", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"{run.num_parameters:,} parameters" in said
    assert f"at most {run.recipe.model.text.context_length} a text" in said


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "ViT-B-32"])
def test_an_architecture_by_name_brings_its_loss(name: str, tmp_path: Path) -> None:
    path = recipe(tmp_path, model=f'name = "{name}"')
    assert load_recipe(path).loss.kind == ("siglip" if "SigLIP" in name else "clip")
    assert load_recipe(path, ["--loss.kind", "clip"]).loss.kind == "clip"
    assert load_recipe(path, ["--model.init_logit_bias", "-5"]).loss.kind == "siglip"


CONTRADICTIONS = [
    ("siglip", ("--loss.kind", "clip"), 'loss.kind = "clip", but model.init = '),
    ("clip", ("--loss.kind", "siglip"), "has no bias of the logits, which starts at"),
    ("clip", ("--data.resize_mode", "shortest"), 'data.resize_mode = "shortest", but model.init'),
    ("siglip", ("--data.interpolation", "bicubic"), 'was judged with "bilinear"'),
    (
        "siglip",
        ("--model.vision.transformer.activation", "gelu"),
        'model.vision.transformer.activation = "gelu", but model.init',
    ),
    ("clip", ("--model.text.transformer.norm_eps", "1e-3"), "has 1e-05: its weights compute"),
    ("clip", ("--model.vision.mean", "0.5,0.5,0.5"), "model.vision.mean = [0.5, 0.5, 0.5], but"),
    ("clip", ("--model.vision.pool_norm", "before"), 'model.vision.pool_norm = "before", but'),
    ("clip", ("--model.text.transformer.mask", "full"), 'transformer.mask = "full", but'),
    ("clip", ("--model.vision.transformer.num_heads", "2"), "transformer.num_heads = 2, but"),
    (
        "clip",
        (
            *("--tokenizer.kind", "sentencepiece", "--tokenizer.path", str(SENTENCES.path)),
            *("--tokenizer.context_length", "16", "--tokenizer.clean", "whitespace"),
        ),
        "[tokenizer] is another one than that of model.init",
    ),
]


@pytest.mark.parametrize(("name", "words", "line"), CONTRADICTIONS)
def test_a_contradiction_is_said(
    name: str, words: tuple[str, ...], line: str, starts: dict[str, Path], tmp_path: Path
) -> None:
    """One line each, and no other."""
    notes = build(recipe(tmp_path, model=f'init = "{starts[name]}"'), *words).notes
    assert len(notes) == 1 and line in notes[0] and str(starts[name]) in notes[0]


@pytest.mark.parametrize(
    "words",
    [
        ("--model.vision.patch_dropout", "0.5"),
        ("--model.text.transformer.stochastic_depth", "0.3"),
        ("--model.vision.image_size", "48"),
        ("--loss.max_logit_scale", "50"),
        ("--loss.kind", "clip"),
    ],
)
def test_a_choice_is_no_contradiction(
    words: tuple[str, ...], starts: dict[str, Path], tmp_path: Path
) -> None:
    assert build(recipe(tmp_path, model=f'init = "{starts["clip"]}"'), *words).notes == ()


@pytest.mark.parametrize("key", ["path", "pad_id"])
def test_none_of_a_tokenizer_does_not_undo_the_starts(
    key: str, starts: dict[str, Path], tmp_path: Path
) -> None:
    path = recipe(tmp_path, model=f'init = "{starts["clip"]}"')
    with pytest.raises(UsageError, match=rf'tokenizer\.{key} = "none" has no effect: model.init'):
        build(path, f"--tokenizer.{key}", "none")


@pytest.mark.parametrize(
    ("key", "value"), [("kind", "clip"), ("context_length", "77"), ("add_eot", "true")]
)
def test_a_tokenizer_of_defaults_does_not_vanish(
    key: str, value: str, starts: dict[str, Path], tmp_path: Path
) -> None:
    path = recipe(tmp_path, model=f'init = "{starts["clip"]}"')
    with pytest.raises(UsageError, match=rf"tokenizer\.{key} = .* has no effect: model.init"):
        build(path, f"--tokenizer.{key}", value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("init_logit_scale", "1.0"),
        ("vision.transformer.init", "scaled"),
        ("init_logit_bias", "-3"),
        ("init_logit_bias", "none"),
    ],
)
def test_what_a_start_brings_cannot_be_set(
    key: str, value: str, starts: dict[str, Path], tmp_path: Path
) -> None:
    """An initial value that no weight begins at is an ignored setting."""
    path = recipe(tmp_path, model=f'init = "{starts["siglip"]}"')
    with pytest.raises(UsageError, match=rf"model\.{key} = .* has no effect: model.init"):
        build(path, f"--model.{key}", value)


def test_the_scale_of_a_start_is_told(
    starts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beyond the standard limit it is kept, beyond the recipe's cut; both in a line of the run."""
    model, preprocess, tokenizer = mmtrain.load(starts["siglip"])
    model.logit_scale.data.fill_(4.7651)
    save_model(tmp_path / "start", model=model, tokenizer=tokenizer, preprocess=preprocess.config)
    words = ["train", str(recipe(tmp_path, model=f'init = "{tmp_path}/start"')), "--run-dir"]
    assert main([*words, str(tmp_path / "kept")]) == 0
    told = capsys.readouterr().err
    assert "multiplies its logits by 117.3, above 100: that stays its limit" in told
    assert main([*words, str(tmp_path / "cut"), "--loss.max_logit_scale", "100"]) == 0
    assert "by 117.3, above 100: the first update cuts it" in capsys.readouterr().err
    kept, cut = (mmtrain.load(tmp_path / n)[0].logit_scale.exp().item() for n in ("kept", "cut"))
    assert kept > 110 and cut == pytest.approx(100, rel=1e-5)
    frozen = build(Path(words[1]), "--peft.kind", "lora", "--loss.max_logit_scale", "100")
    assert frozen.notes == ()


def test_a_fresh_scale_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path, model='name = "ViT-B-32"')
    for value, words in (("5.0", ()), ("-0.1", ()), ("3.0", ("--loss.max_logit_scale", "10"))):
        read = load_recipe(path, ["--model.init_logit_scale", value, *words])
        with pytest.raises(UsageError, match=r"model.init_logit_scale = .*first update would cut"):
            resolve(read, build_tokenizer(read.tokenizer))


def test_a_bias_that_softmax_does_not_see_is_refused(tmp_path: Path) -> None:
    path = recipe(tmp_path, model='name = "ViT-B-32"')
    words = ["--model.init_logit_bias", "-10", "--loss.kind", "clip"]
    with pytest.raises(UsageError, match=r"model.init_logit_bias = -10.0 has no effect with loss"):
        read: Any = load_recipe(path, words)
        resolve(read, build_tokenizer(read.tokenizer))


def test_weights_are_the_starts(starts: dict[str, Path], tmp_path: Path) -> None:
    """Nothing of the rules touches a weight."""
    run = build(recipe(tmp_path, model=f'init = "{starts["siglip"]}"'))
    want = mmtrain.load(starts["siglip"])[0].state_dict()
    found: dict[str, nn.Parameter] = {**run.state.stage_parameters()}
    found |= run.state.objective.parameters()
    assert all(torch.equal(found[name], want[name]) for name in want)


def test_a_written_default_is_not_the_same_as_nothing(tmp_path: Path) -> None:
    """`model.text.vocab_size = 49408` was taken for not written, and another tower was built."""
    words = ["--tokenizer.kind", "sentencepiece", "--tokenizer.clean", "canonicalize"]
    words += ["--tokenizer.path", str(SENTENCES.path), "--run.dir", str(tmp_path / "run")]
    debug = Path("configs/debug_clip.toml")
    assert main(["train", str(debug), *words, "--train.steps", "1"]) == 0
    path = tmp_path / "recipe.toml"
    path.write_text(
        '[run]\ndir = "none"\n[data]\ntrain = "mmtrain/demo/debug/train.tar"\n'
        f'[model]\ninit = "{tmp_path}/run"\n[train]\nsteps = 1\nbatch_size = 8\n'
    )
    standard = {"vocab_size": "49408", "context_length": "77", "end_token_id": "49407"}
    for name, value in standard.items():
        told = f"model.text.{name} = {value}, but the tokenizer"
        for recipe, more in ((debug, words), (path, [])):
            with pytest.raises(UsageError, match=told):
                load_recipe(recipe, [*more, f"--model.text.{name}", value])
    assert load_recipe(tmp_path / "run/recipe.toml").model.text.context_length == 24
    # What the tokenizer has may be written.
    assert load_recipe(path, ["--model.text.context_length", "24"])


def test_a_written_scale_of_a_sigmoid_stays(tmp_path: Path) -> None:
    standard = ClipConfig.init_logit_scale
    words = ["--run.dir", str(tmp_path), "--loss.kind", "siglip", "--loss.max_logit_scale", "100"]
    for said, scale in (
        (["--model.init_logit_scale", f"{standard!r}"], standard),
        ([], math.log(10)),
    ):
        read = load_recipe(Path("configs/debug_clip.toml"), [*words, *said])
        model = resolve(read, run_tokenizer(read, None)).model
        assert model.init_logit_scale == pytest.approx(scale) and model.init_logit_bias == -10
