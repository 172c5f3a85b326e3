"""Every way that a tower can know places, pool, normalise, drop and mask, in every number format:
one step each, forwards and backwards."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmtrain.models import Clip, ClipConfig
from mmtrain.models.clip import ClipStage
from mmtrain.models.vision import FP16_SCALE, PatchEmbed
from mmtrain.models.vqa import Vqa
from mmtrain.nn import TransformerConfig, unit_norm
from mmtrain.parallel.apply import parallelize
from mmtrain.parallel.mesh import Layout, ParallelConfig
from mmtrain.tasks.answering import answer_objective
from mmtrain.train.step import build_schedule
from tests.parallel.tiny_answers import BCE, both_heads, choosing, make_questions, writing
from tests.parallel.tiny_clip import (
    CPU,
    SIGMOID,
    SOFTMAX,
    Trained,
    make_batch,
    modern_config,
    siglip_config,
    tiny_config,
)
from tests.ranks import run_ranks

FORMATS = ("fp32", "bf16", "bf16-main", "bf16-pure", "fp16", "fp64")
CORE = TransformerConfig(dim=32, num_layers=2, num_heads=4, layer_scale=0.5, stochastic_depth=0.2)
IMAGE = (
    *({"positions": kind} for kind in ("learned", "sinusoidal", "rope", "rope_2d", "none")),
    *({"prefix_positions": kind, "num_registers": 2} for kind in ("none", "class", "all")),
    {"pool": "mean", "class_token": False, "embed_norm": False},
    {"pool": "attention", "pool_norm": "before", "patch_bias": True, "projection_bias": True},
    {"patch_dropout": 0.4, "positions": "sinusoidal"},
    {"patch_dropout": 0.4, "positions": "rope_2d"},
    {"drop_edge": True, "patch_size": 10},
    {"patch_size": 8, "stem_channels": (8, 12, 16), "patch_dropout": 0.4},
    {"patch_size": 8, "stem_channels": (8, 8, 8), "positions": "sinusoidal", "patch_bias": True},
)
TEXT = (
    *({"positions": kind} for kind in ("learned", "sinusoidal", "rope", "none")),
    *({"pool": kind} for kind in ("end", "last", "first", "mean")),
    {"mask_padding": False, "positions": "sinusoidal"},
    {"num_context": 3, "positions": "sinusoidal"},
)
CORES = (
    *({"norm": kind, "qk_norm": kind} for kind in ("rms", "partial_rms", "gemma_rms")),
    {"norm_order": "post"},
    {"norm_order": "sandwich", "layer_scale": None, "attention_cap": 4.0, "attention_scale": 0.2},
    {"norm_order": "branch", "layer_scale": None, "qk_norm": "rms", "qk_norm_over": "heads"},
    {"activation": "geglu", "num_kv_heads": 1},
)


def configs() -> Iterator[tuple[str, ClipConfig]]:
    base = modern_config()
    image, text = replace(base.vision, transformer=CORE), replace(base.text, transformer=CORE)
    base = replace(base, vision=image, text=replace(text, context_length=16))
    for change in IMAGE:
        yield f"image {change}", replace(base, vision=replace(base.vision, **change))
    for change in TEXT:
        yield f"text {change}", replace(base, text=replace(base.text, **change))
    for change in CORES:
        core = replace(CORE, **change)
        vision, text = (replace(tower, transformer=core) for tower in (base.vision, base.text))
        yield f"blocks {change}", replace(base, vision=vision, text=text)
    for config in (tiny_config(), modern_config(), siglip_config()):
        yield "form", config


def step(config: ClipConfig, precision: str, parallel: ParallelConfig | None = None) -> list[str]:
    """One training step -> what is wrong with it."""
    context = config.text.context_length - config.text.num_context
    loss = SIGMOID if config.vision.pool == "attention" else SOFTMAX
    trained = Trained(config, loss, precision=precision, parallel=parallel)
    value = trained.backward(make_batch(width=context))
    norm = trained.clip()
    trained.optimizers.step()
    finite = [bool(value.isfinite()), norm == norm]
    finite += [bool(p.detach().isfinite().all()) for p in trained.model.parameters()]
    return [] if all(finite) else ["not finite"]


def test_every_tower_trains_in_every_format() -> None:
    """A table that stays in fp32 beside weights in bf16 stops the first step."""
    wrong = []
    for name, config in configs():
        for precision in FORMATS:
            try:
                wrong += [f"{precision}, {name}: {one}" for one in step(config, precision)]
            except RuntimeError as error:
                wrong.append(f"{precision}, {name}: {error}")
    assert not wrong, "\n".join(wrong)


def check_gathered(rank: int) -> None:
    wrong = []
    placed = [one for one in configs() if "'positions'" in one[0]]
    for name, config in placed:
        try:
            wrong += step(config, "bf16-fsdp", ParallelConfig(dp_shard=2))
        except RuntimeError as error:
            wrong.append(f"{name}: {error}")
    dist.barrier()
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_every_tower_trains_where_weights_are_gathered_in_bf16() -> None:
    run_ranks(check_gathered, 2)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rope", "none"])
def test_every_answering_model_trains_in_every_format(precision: Any, positions: Any) -> None:
    for make in (both_heads, choosing, writing):
        clip, config = make()
        vision = "rope_2d" if positions == "rope" else positions
        clip = replace(
            clip,
            vision=replace(clip.vision, positions=vision),
            text=replace(clip.text, positions=positions),
        )
        layout = Layout(device=CPU, config=ParallelConfig())
        model = Vqa(clip, config).init_weights(0)
        towers = Clip(clip).init_weights(0)
        model.load_state_dict(towers.state_dict(), strict=False)
        stages = parallelize(model, layout, precision=precision)
        objective = answer_objective(model, BCE, layout=layout, seed=3)
        for stage in stages:
            stage.set_criterion(objective.criterion)  # pyright: ignore[reportCallIssue]
        schedule = build_schedule(stages, layout, num_microbatches=1, batch_size=8)
        batch = make_questions(with_answers=config.generate is not None)
        assert objective.step(schedule, batch).isfinite()


@pytest.mark.parametrize(
    ("storage", "autocast"),
    [
        *((storage, None) for storage in (torch.float32, torch.bfloat16, torch.float16)),
        *((torch.float32, autocast) for autocast in (torch.bfloat16, torch.float16)),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_features_are_of_unit_norm_in_every_format(
    storage: torch.dtype, autocast: torch.dtype | None
) -> None:
    """Divided by a rounded length, or rounded after it, they would be 0.3 % off."""
    config = tiny_config()
    model = Clip(config).init_weights(0).to(storage)
    batch = make_batch()
    with torch.no_grad(), torch.autocast("cpu", autocast, enabled=autocast is not None):
        stage: ClipStage = model.stage()
        both = stage(batch.images_BCHW, tokens_BT=batch.tokens_BT, length_B=batch.text_length_B)
        image, text = model.encode_image(batch.images_BCHW), model.encode_text(batch.tokens_BT)
    assert isinstance(both, Tensor)
    for features in (*both.chunk(2, dim=1), image, text):
        assert features.dtype == torch.float32
        assert (features.norm(dim=-1) - 1).abs().max() < 1e-6
    assert unit_norm(torch.rand(2, 8, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(("patch", "dim"), [(8, 64), (16, 384), (32, 768)])
def test_the_patch_weight_is_in_the_range_of_fp16(patch: int, dim: int) -> None:
    """On pixels of -128 to 127 a quarter of the folded weights of a 32 x 32 patch were subnormal,
    and their gradient the first of the model to overflow."""
    vision = tiny_config().vision
    core = replace(vision.transformer, dim=dim)
    embed = PatchEmbed(replace(vision, image_size=4 * patch, patch_size=patch, transformer=core))
    generator = torch.Generator().manual_seed(0)
    bound = embed.weight.size(1) ** -0.5
    nn.init.uniform_(embed.weight, -bound, bound, generator=generator)
    seen: list[tuple[Tensor, Tensor]] = []
    real = torch.nn.functional.linear

    def watch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        seen.append((x.detach(), weight.detach()))
        return real(x, weight, bias)

    images = torch.randint(0, 256, (4, 3, 4 * patch, 4 * patch), dtype=torch.uint8)
    results = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.nn.functional, "linear", watch)
        for dtype in (torch.float32, torch.float16):
            with torch.autocast("cpu", dtype, enabled=dtype == torch.float16):
                results[dtype] = embed(images)
            results[dtype].float().square().mean().backward()
            results[dtype, "gradient"], embed.weight.grad = embed.weight.grad, None
    (plain, weight), (pixels, folded) = seen
    smallest = torch.finfo(torch.float16).smallest_normal
    assert (weight.abs() < smallest).float().mean() > (0.2 if patch == 32 else 0.04)
    assert (folded.abs() < smallest).float().mean() < 0.005
    # Powers of two round nothing: the pixels are exact, and fp32 is left as it was.
    assert torch.equal(pixels.float() * FP16_SCALE, plain)
    torch.testing.assert_close(
        results[torch.float16].float(), results[torch.float32], rtol=2e-3, atol=2e-3
    )
    one, two = results[torch.float16, "gradient"], results[torch.float32, "gradient"]
    assert (one - two).norm() / two.norm() < 2e-3
