"""What is frozen keeps every bit, whatever trains beside it; what is loaded is not cut unasked."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import mmtrain
from mmtrain.build.run import Run, build_run
from mmtrain.cli import main
from mmtrain.loading import save_model
from mmtrain.optim.clip import clip_gradients
from mmtrain.parallel.mesh import build_layout, pick_device
from mmtrain.recipe import load_recipe
from tests.parallel.tiny_clip import full
from tests.ranks import run_ranks

SIGLIP_SCALE = 4.7651
"""The logarithm of what google/siglip-base-patch16-224 multiplies its logits by, 117.3."""
RECIPES = {"clip": "configs/debug_clip.toml", "siglip": "configs/debug_siglip.toml"}
PEFT = (
    ("--peft.kind", "lora", "--peft.targets", '["*.attention.*"]'),
    ("--peft.kind", "lora", "--peft.also_train", '["vision.head.*", "text.embed.token.weight"]'),
    ("--peft.kind", "context", "--peft.num_tokens", "4"),
)
LOCKS = (
    ("--lock.vision", "0"),
    ("--lock.text", "0", "--lock.vision", "2"),
    ("--lock.text", "0", "--lock.vision", "0"),
)
OPTIMIZERS = (
    ("--optim.kind", "adamw", "--optim.weight_decay", "0.9"),
    ("--optim.kind", "muon", "--optim.muon_weight_decay", "0.9"),
    ("--optim.kind", "adamw", "--optim.layer_decay", "0.5", "--optim.clip_norm", "none"),
)
FORMATS = ("fp32", "bf16", "bf16-main", "bf16-pure", "fp16", "fp64")


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A CLIP, and a SigLIP whose scale is beyond a CLIP's limit."""
    folder, made = tmp_path_factory.mktemp("frozen"), {}
    for kind, recipe in RECIPES.items():
        words = ["--run-dir", str(folder / f"{kind}-run"), "--train.steps", "1"]
        assert main(["train", recipe, *words]) == 0
        model, preprocess, tokenizer = mmtrain.load(folder / f"{kind}-run")
        if kind == "siglip":
            model.logit_scale.data.fill_(SIGLIP_SCALE)
        made[kind] = folder / kind
        save_model(made[kind], model=model, tokenizer=tokenizer, preprocess=preprocess.config)
    return made


def build(start: Path, run: Path, *words: str) -> Run:
    kind = start.name
    common = [f"--model.init={start}", f"--run.dir={run}", "--optim.lr", "0.05"]
    common += ["--optim.warmup_steps", "0", "--train.batch_size", "8"]
    recipe = load_recipe(Path(RECIPES[kind]), [*common, *words])
    run.mkdir(parents=True, exist_ok=True)
    return build_run(recipe, build_layout(recipe.parallel, pick_device("cpu")))


def train(run: Run, num_steps: int = 2) -> None:
    state = run.state
    for step, batch in enumerate(run.data.iterate(0, num_steps)):
        state.objective.step(state.schedule, batch)
        towers, shared = state.stage_parameters(), state.objective.parameters()
        clip_gradients(towers.values(), run.recipe.optim.clip_norm, shared=shared.values())
        state.optimizers.step()
        state.objective.clamp()
        if state.ema is not None:
            state.ema.update(step)
        state.optimizers.zero_grad()


def bits(run: Run) -> dict[str, Any]:
    parameters = {**run.state.stage_parameters(), **run.state.objective.parameters()}
    return {name: (p.requires_grad, full(p.detach()).clone()) for name, p in parameters.items()}


def check(run: Run, what: str) -> None:
    before = bits(run)
    train(run)
    after = run.state.whole_weights()  # the averages, where there are any
    moved = {n for n, (_, x) in before.items() if not torch.equal(x, bits(run)[n][1])}
    frozen = {n for n, (trains, _) in before.items() if not trains}
    assert frozen and not moved & frozen, f"{what}: {sorted(moved & frozen)}"
    assert moved, what
    assert all(torch.equal(after[n].to(x.dtype), x) for n, (_, x) in before.items() if n in frozen)


@pytest.mark.parametrize("kind", [pytest.param("clip", marks=pytest.mark.slow), "siglip"])
def test_frozen_parameters_keep_every_bit(
    kind: str, starts: dict[str, Path], tmp_path: Path
) -> None:
    """Adapters and locks, optimizers, number formats and averages by turns."""
    given = (*PEFT, *LOCKS)
    for number in range(max(len(FORMATS), len(given)) + len(OPTIMIZERS)):
        words = given[number % len(given)]
        optimizer = OPTIMIZERS[number % 2 if "lora" not in words and "context" not in words else 0]
        optimizer = OPTIMIZERS[2] if number % 5 == 4 else optimizer
        average = ("--optim.ema_decay", "0.5") if number % 2 else ("--optim.ema_decay", "none")
        precision = ("--train.precision", FORMATS[number % len(FORMATS)])
        chosen = (*words, *optimizer, *average, *precision)
        check(build(starts[kind], tmp_path / str(number), *chosen), " ".join(chosen))


def check_ranks(rank: int, folder: str, starts: dict[str, Path]) -> None:
    for kind, layout in (("fsdp", "dp_shard"), ("zero1", "dp_kind"), ("tp", "tp"), ("pp", "pp")):
        words = [f"--parallel.{layout}", "zero1" if kind == "zero1" else "2"]
        words += ["--train.precision", "bf16-fsdp" if kind == "fsdp" else "fp32"]
        words += ["--lock.vision", "0", "--train.microbatches", "2"]
        run = build(starts["siglip"], Path(folder) / f"{kind}-{rank}", *words)
        run.state.objective.parameters()["logit_scale"].requires_grad_(False)
        check(run, kind)
    dist.barrier()


@pytest.mark.slow
def test_frozen_parameters_keep_every_bit_in_every_layout(
    starts: dict[str, Path], tmp_path: Path
) -> None:
    run_ranks(check_ranks, 2, str(tmp_path), starts)


@pytest.mark.parametrize(
    ("loaded", "words", "after"),
    [
        (SIGLIP_SCALE, (), None),
        (-0.5, (), None),
        (SIGLIP_SCALE, ("--loss.max_logit_scale", "100"), math.log(100)),
        (SIGLIP_SCALE, ("--loss.max_logit_scale", "20"), math.log(20)),
        (SIGLIP_SCALE, ("--loss.max_logit_scale", "200"), None),
        (-0.5, ("--loss.max_logit_scale", "200"), 0.0),
        (3.0, (), None),
    ],
)
def test_a_loaded_scale_is_cut_only_where_the_recipe_sets_the_limit(
    loaded: float, words: tuple[str, ...], after: float | None, tmp_path: Path, starts: Any
) -> None:
    model, preprocess, tokenizer = mmtrain.load(starts["siglip"])
    model.logit_scale.data.fill_(loaded)
    start = tmp_path / "siglip"
    save_model(start, model=model, tokenizer=tokenizer, preprocess=preprocess.config)
    run = build(start, tmp_path / "run", *words)
    scale = run.state.objective.parameters()["logit_scale"]
    run.state.objective.clamp()
    expected = loaded if after is None else after
    assert scale.item() == pytest.approx(expected, rel=1e-7)
    # It is a limit all the same: training does not lead further away.
    for beyond, side in ((9.0, max), (-9.0, min)):
        scale.data.fill_(beyond)
        run.state.objective.clamp()
        usual = math.log(100) if beyond > 0 else 0.0
        limit = math.log(float(words[1])) if words and beyond > 0 else usual
        kept = limit if words else side(limit, loaded)
        assert scale.item() == pytest.approx(kept, rel=1e-6, abs=1e-7)
