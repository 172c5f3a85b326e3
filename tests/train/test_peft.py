"""Adapters in a run: the model stays, the adapter trains, resumes, is exported."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch.distributed.tensor import DTensor

import mmtrain
from mmtrain.build.run import build_run
from mmtrain.cli import main
from mmtrain.errors import UsageError
from mmtrain.interop.hf_clip import clip_links
from mmtrain.interop.hf_peft import read_adapter
from mmtrain.optim.clip import clip_gradients
from mmtrain.parallel.mesh import Layout, build_layout, pick_device
from mmtrain.peft import PeftConfig, add_terms
from mmtrain.recipe import load_recipe
from mmtrain.train.adapting import check_whole
from tests.ranks import run_ranks

RECIPE = "configs/debug_clip.toml"
LORA = ("--peft.kind", "lora", "--peft.rank", "3")
PATTERNS = ("--peft.rank_pattern", '{"vision.*.q" = 2, "text.*" = 4}')
PATTERNS += ("--peft.alpha_pattern", '{"*.v" = 5.5}')
ALL_LAYERS = ("--peft.targets", '["*.attention.*", "*.feed_forward.*"]')
CONTEXT = ("--peft.kind", "context", "--peft.num_tokens", "4")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the debug recipe."""
    run = tmp_path_factory.mktemp("peft") / "pretrained"
    assert main(["train", RECIPE, "--run-dir", str(run), "--train.steps", "2"]) == 0
    return run


def train(run: Path, init: Path, *words: str) -> None:
    start = ["--model.init", str(init), "--run-dir", str(run)]
    pace = ["--optim.schedule", "constant", "--optim.warmup_steps", "1"]
    assert main(["train", RECIPE, *start, *pace, *words]) == 0


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_lora_trains_and_nothing_else_does(pretrained: Path, tmp_path: Path):
    dropout = ("--peft.dropout", "0.2")
    train(tmp_path / "run", pretrained, *LORA, *dropout, "--train.steps", "8", "--optim.lr", "1e-2")
    one = losses(tmp_path / "run")
    assert sum(one[-3:]) < sum(one[:3])
    base, after = (mmtrain.load(path)[0] for path in (pretrained, tmp_path / "run"))
    before = base.state_dict()
    moved = {n for n, x in after.state_dict().items() if not torch.equal(x, before[n])}
    assert moved == {n for n in before if n.endswith(("attention.q.weight", "attention.v.weight"))}
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["parameters"]["trainable"] == 2 * 2 * 3 * (2 * 48 + 2 * 32)
    # The adapter's folder says the same as the export.
    adapter = read_adapter(
        tmp_path / "run/adapter", model=base, links=clip_links(base.config), blocks=None
    )
    add_terms(base, adapter.terms, scale=adapter.scale)
    tokens = mmtrain.load(pretrained)[2](["a red circle", "a note"])
    with torch.no_grad():
        difference = base.encode_text(tokens) - after.encode_text(tokens)
    assert difference.abs().max() < 1e-6
    # Another run starts from it, though its terms count half as much.
    start = [f"--model.init={pretrained}", f"--peft.init={tmp_path / 'run/adapter'}"]
    recipe = load_recipe(Path(RECIPE), [*start, *LORA, "--peft.alpha", "8"])
    again = build_run(recipe, build_layout(recipe.parallel, pick_device("cpu"))).plain_weights()
    for name, value in after.state_dict().items():
        torch.testing.assert_close(again[name], value, rtol=1e-6, atol=1e-7)


def test_dora_trains_lengths_and_its_folder_says_the_same(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """And what trains in full, but for a parameter of no module."""
    words = (*LORA, "--peft.dora", "true", "--peft.dropout", "0.2", "--train.steps", "3")
    words += (*PATTERNS, "--peft.also_train", '["vision.head.norm.bias", "logit_scale"]')
    train(tmp_path / "run", pretrained, *words, "--optim.lr", "1e-2")
    assert "adapter lacks logit_scale: peft has no place for it" in capsys.readouterr().err
    base, _, tokenizer = mmtrain.load(pretrained)
    after = mmtrain.load(tmp_path / "run")[0]
    adapter = read_adapter(
        tmp_path / "run/adapter", model=base, links=clip_links(base.config), blocks=None
    )
    assert adapter.lengths.keys() == adapter.terms.keys()
    assert {
        n.split(".")[0] + n[-2:]: (a.size(0), round(adapter.scale_of(n), 3))
        for n, (a, _) in adapter.terms.items()
    } == {"vision.q": (2, 8), "vision.v": (3, 1.833), "text.q": (4, 4), "text.v": (4, 1.375)}
    assert adapter.whole.keys() == {"vision.head.norm.weight", "vision.head.norm.bias"}
    for name, length in adapter.lengths.items():
        assert not torch.allclose(length, base.get_parameter(f"{name}.weight").norm(dim=1))
    weights = {"scale": adapter.scale, "scales": adapter.scales}
    add_terms(base, adapter.terms, **weights, lengths=adapter.lengths)
    base.load_state_dict(adapter.whole, strict=False)
    tokens = tokenizer(["a red circle", "a note"])
    pixels = torch.arange(2 * 3 * 32 * 32).view(2, 3, 32, 32).to(torch.uint8)
    with torch.no_grad():
        assert (base.encode_text(tokens) - after.encode_text(tokens)).abs().max() < 1e-6
        assert (base.encode_image(pixels) - after.encode_image(pixels)).abs().max() < 1e-6
    start = [f"--model.init={pretrained}", f"--peft.init={tmp_path / 'run/adapter'}"]
    recipe = load_recipe(Path(RECIPE), [*start, *words])
    again = build_run(recipe, build_layout(recipe.parallel, pick_device("cpu"))).plain_weights()
    for name, value in after.state_dict().items():
        if name == "logit_scale":
            start_value = mmtrain.load(pretrained)[0].state_dict()[name]
            torch.testing.assert_close(again[name], start_value)
            assert (value - start_value).abs() > 1e-3
        else:
            torch.testing.assert_close(again[name], value, rtol=1e-6, atol=1e-7)
    # What it trained in full must train here too, or be the model's.
    recipe = load_recipe(Path(RECIPE), [*start, *words[:-1], '["logit_scale"]'])
    with pytest.raises(UsageError, match=r"holds another vision\.head\.norm\.bias than"):
        build_run(recipe, build_layout(recipe.parallel, pick_device("cpu")))


@pytest.mark.parametrize("kind", ["lora", pytest.param("context", marks=pytest.mark.slow)])
def test_resume_is_exact(kind: str, pretrained: Path, tmp_path: Path):
    dora = ("--peft.dora", "true")
    dora += (*PATTERNS, "--peft.also_train", '["vision.head.norm.*"]')
    words = (*LORA, *dora, "--peft.dropout", "0.2") if kind == "lora" else CONTEXT
    train(tmp_path / "whole", pretrained, *words, "--train.steps", "4")
    train(tmp_path / "parts", pretrained, *words, "--train.steps", "2")
    train(tmp_path / "parts", pretrained, *words, "--train.steps", "4", "--resume-with-changes")
    assert main(["train", str(tmp_path / "parts"), "--resume"]) == 0  # its own recipe is the same
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    first, second = (mmtrain.load(tmp_path / n)[0].state_dict() for n in ("whole", "parts"))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_learned_context_takes_places_of_the_text(pretrained: Path, tmp_path: Path):
    train(tmp_path / "run", pretrained, *CONTEXT, "--train.steps", "2")
    model, _, tokenizer = mmtrain.load(tmp_path / "run")
    before = mmtrain.load(pretrained)[0].state_dict()
    assert tokenizer.context_length == 20 and model.config.text.context_length == 24
    for name, value in model.state_dict().items():
        assert name == "text.embed.context" or torch.equal(value, before[name]), name
    # Vectors that are those of words give what the words give.
    words, text = tokenizer(["a b c d"])[0, 1:5], tokenizer(["red"])
    plain = mmtrain.load(pretrained)[0]
    with torch.no_grad():
        model.text.embed.context.copy_(plain.text.embed.token(words))
        joined = torch.cat([text[:, :1], words[None], text[:, 1:]], dim=1)
        torch.testing.assert_close(model.encode_text(text), plain.encode_text(joined))


def test_mistakes_are_one_line(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    train(tmp_path / "other", pretrained, *LORA, "--train.steps", "1")
    capsys.readouterr()

    def mistake(*words: str, init: bool = True) -> str:
        start = ["--model.init", str(pretrained)] if init else []
        run = ["--run-dir", str(tmp_path / "bad")]
        assert main(["train", RECIPE, *run, *start, *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "starts from nothing" in mistake(*LORA, init=False)
    assert "num_tokens has no effect" in mistake(*LORA, "--peft.num_tokens", "3")
    # A recipe of another kind brings several.
    of_lora = ("--peft.rank", "3", "--peft.dora", "false", "--peft.targets", '["*.q"]')
    for words in (CONTEXT, ("--peft.kind", "prompt")):
        told = f'peft: rank, dora, targets have no effect with kind = "{words[1]}"; leave them out'
        assert told in mistake(*words, *of_lora)
    told = 'peft: num_tokens, network, hidden_dim have no effect with kind = "lora"; leave them out'
    of_prompts = ("--peft.num_tokens", "3", "--peft.network", "mlp", "--peft.hidden_dim", "8")
    assert told in mistake(*LORA, *of_prompts)
    assert "no [vqa.generate]" in mistake("--peft.kind", "prefix")
    assert "matches no linear layer" in mistake(*LORA, "--peft.targets", '["*.query"]')
    for ranks, told in (
        ('{"*.attention.o" = 2}', "fits none of the layers"),
        ('{"*.q" = 2, "text.*.q" = 4}', "others before it fit all its layers; put it first"),
        ('{"*.q" = 0}', "must be at least 1"),
    ):
        assert told in mistake(*LORA, "--peft.rank_pattern", ranks)
    assert 'alpha_pattern."x" has no effect' in mistake(*LORA, "--peft.alpha_pattern", '{"x" = 2}')
    assert "must be above 0" in mistake(*LORA, "--peft.alpha_pattern", '{"*.q" = -1.0}')
    assert "rank_pattern has no effect" in mistake(*CONTEXT, "--peft.rank_pattern", '{"*.q" = 2}')
    assert "matches no parameter" in mistake(*LORA, "--peft.also_train", '["classify.*"]')
    assert "lock has no effect" in mistake(*LORA, "--lock.vision", "0")
    assert 'optim.kind = "muon" has no effect' in mistake(*LORA, "--optim.kind", "muon")
    other = ("--peft.kind", "lora", "--peft.init", str(tmp_path / "other/adapter"))
    assert "is not the same in both" in mistake(*other)
    assert "is not the same in both" in mistake(*other, *LORA[2:], "--peft.dora", "true")
    assert "dora has no effect" in mistake(*CONTEXT, "--peft.dora", "true")
    cut = ("--parallel.pp", "2")
    assert "[peft] does not work with parallel.pp = 2" in mistake(*LORA, *cut)
    learned = mistake("--model.text.num_context", "4", *cut)
    assert "model.text.num_context does not work with parallel.pp = 2" in learned
    assert "dropout does not follow" in mistake(
        *LORA, "--peft.dropout", "0.1", "--train.text_groups", "2"
    )


@pytest.mark.parametrize("setting", [{"dora": True}, {"dropout": 0.1}], ids=str)
def test_what_needs_whole_layers_is_not_cut(setting: dict):
    layout = cast(Layout, SimpleNamespace(size={"tp": 2, "pp": 1}.get))
    (key,) = setting
    with pytest.raises(UsageError, match=rf"peft\.{key} needs whole layers .* parallel\.tp = 2"):
        check_whole(PeftConfig(kind="lora", **setting), layout)


def three_steps(
    words: list[str], path: Path = Path(RECIPE)
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Gradients of the third step and the weights after it, whole, of what trains."""
    recipe = load_recipe(path, words)
    layout = build_layout(recipe.parallel, pick_device("cpu"))
    run = build_run(recipe, layout)
    state, grads = run.state, {}
    for step in range(3):
        state.optimizers.set_lr(1.0)
        state.objective.step(state.schedule, run.data.batch(step))
        clip_gradients(state.stage_parameters().values(), 1.0)
        named = state.stage_parameters().items()
        grads = {n: whole(p.grad) for n, p in named if p.requires_grad and p.grad is not None}
        state.optimizers.step()
        state.optimizers.zero_grad()
    weights = {n: whole(p).clone() for n, p in state.stage_parameters().items() if p.requires_grad}
    return grads, weights


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def compare(
    rank: int,
    folder: Path,
    cases: dict[str, list[str]],
    layouts: list[list[str]],
    path: Path = Path(RECIPE),
) -> None:
    """One rank of two, every case under every layout, against the single process on disk."""
    for name, words in cases.items():
        wanted = torch.load(folder / f"{name}.pt", weights_only=True)
        for layout in layouts:
            for got, want in zip(three_steps([*words, *layout], path), wanted, strict=True):
                assert got.keys() == want.keys()
                for key, value in want.items():
                    error = (got[key] - value).norm()
                    assert error <= 1e-9 * value.norm().clamp(min=1e-3), (name, layout, key)


@pytest.mark.slow
def test_two_ranks_have_the_single_process_gradients_and_weights(pretrained: Path, tmp_path: Path):
    common = ["--model.init", str(pretrained), "--run.dir", str(tmp_path / "run")]
    common += ["--train.precision", "fp64", "--train.steps", "3"]
    norm = ("--peft.also_train", '["vision.head.norm.*"]')
    cases = {
        "lora": [*common, *LORA, *ALL_LAYERS, *PATTERNS, *norm],
        "context": [*common, *CONTEXT],
    }
    dora = {"dora": [*common, *LORA, *ALL_LAYERS, "--peft.dora", "true"]}
    for name, words in (cases | dora).items():
        grads, weights = three_steps(words)
        assert grads and grads.keys() == weights.keys()
        assert all(value.any() for value in grads.values())
        torch.save((grads, weights), tmp_path / f"{name}.pt")
    layouts = [["--parallel.dp_shard", "2"], ["--parallel.tp", "2"]]
    layouts.append(["--parallel.tp", "2", "--parallel.sequence", "false"])
    run_ranks(compare, 2, tmp_path, cases, layouts)
    copies = [["--parallel.dp_shard", "2"], ["--parallel.dp_replicate", "2"]]
    run_ranks(compare, 2, tmp_path, dora, copies)
