"""What the summary tells of each part, against the formula and against a real pass."""

import dataclasses

import pytest
import torch

from mmtrain.models import Clip, ClipConfig
from mmtrain.models.classify_answers import ClassifyConfig
from mmtrain.models.flops import clip_flops, decoder_flops
from mmtrain.models.generate_answers import GenerateConfig
from mmtrain.models.text import TextConfig
from mmtrain.models.vision import VisionConfig
from mmtrain.models.vqa import Vqa, VqaConfig
from mmtrain.nn import TransformerConfig
from mmtrain.report.autograd_graph import trace_operations
from mmtrain.report.graph import draw_graph
from mmtrain.report.measure import (
    measure,
    measure_answering,
    measured_answering,
    measured_parts,
)


def config(**fields) -> ClipConfig:
    core = TransformerConfig(dim=48, num_layers=3, num_heads=4, **fields)
    return ClipConfig(
        vision=VisionConfig(transformer=core, image_size=32, patch_size=8),
        text=TextConfig(
            transformer=dataclasses.replace(core, mask="causal"),
            vocab_size=64,
            context_length=12,
            end_token_id=63,
        ),
        embed_dim=32,
    )


@pytest.mark.parametrize("fields", [{}, {"num_kv_heads": 2}, {"activation": "swiglu"}])
def test_flops_are_those_of_the_formula(fields: dict) -> None:
    found, expected = measure(config(**fields)), clip_flops(config(**fields))
    assert (found["vision"].flops, found["text"].flops) == (expected.image, expected.text)
    block, stack = found["vision.transformer.blocks.0"], found["vision.transformer"]
    assert stack.flops == 3 * block.flops > 0
    inside = [found[f"vision.transformer.blocks.0.{one}"] for one in ("attention", "feed_forward")]
    assert block.flops == sum(one.flops for one in inside)


@pytest.mark.parametrize("num_context", [1, 4])
def test_learned_vectors_take_places_of_a_text(num_context: int) -> None:
    """Of a text tower with CoOp's, whatever measures or draws it takes as many ids fewer."""
    plain = config()
    learned = dataclasses.replace(
        plain, text=dataclasses.replace(plain.text, num_context=num_context)
    )
    assert measure(learned)["text"].flops == clip_flops(learned).text
    assert trace_operations(learned)
    assert f"up to {12 - num_context}]" in draw_graph(learned, title="a")
    core = plain.vision.transformer
    answers = VqaConfig(classify=ClassifyConfig(fusion=core, num_answers=7))
    found = measure_answering(learned, answers)
    assert found["text"].flops == clip_flops(learned).text - 2 * 48 * 32


def test_shapes_are_those_of_a_real_pass() -> None:
    model, found = Clip(config()).init_weights(0), measure(config())
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    model.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    model.text(torch.ones(1, 12, dtype=torch.int64), length_B=torch.tensor([12]))
    shapes.pop("", None)
    assert len(shapes) > 40 and shapes["vision.embed"] == (17, 48)
    assert {name: found[name].shape for name in shapes} == shapes


def test_kept_memory_is_what_a_real_pass_keeps() -> None:
    model, found = Clip(config()).init_weights(0), measure(config())
    weights = {x.untyped_storage().data_ptr() for x in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.vision(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert found["vision"].kept_bytes == sum(storage.nbytes() for storage in kept.values())
    assert output.requires_grad and found["vision.transformer.blocks.1"].kept_bytes > 0


def test_every_line_of_a_module_is_measured() -> None:
    lines = {one.part.name: one for one in measured_parts(config())}
    stack, found = lines["text.transformer.blocks.0..2"].measured, measure(config())
    assert stack == found["text.transformer"]
    assert any(one.part.name == "each.attention.q" and one.measured for one in lines.values())
    bare = [name for name, one in lines.items() if one.measured is None]
    assert bare and all(
        name == "logit_scale" or lines[name].part.detail.startswith("[") for name in bare
    )


@pytest.mark.parametrize("mask", ["causal", "prefix", "block"])
def test_the_parts_of_a_model_that_answers_are_measured(mask: str) -> None:
    core = TransformerConfig(dim=48, num_layers=3, num_heads=4)
    answers = VqaConfig(
        classify=ClassifyConfig(fusion=core, num_answers=7),
        generate=GenerateConfig(
            transformer=dataclasses.replace(core, mask=mask, num_kv_heads=2),  # pyright: ignore[reportArgumentType]
            vocab_size=64,
            text_length=20,
        ),
    )
    clip = config()
    model, found = Vqa(clip, answers), measure_answering(clip, answers)
    # The towers without their projections.
    towers = clip_flops(clip)
    assert found["vision"].flops == towers.image - 2 * 48 * 32
    assert found["text"].flops == towers.text - 2 * 48 * 32
    assert model.generate is not None
    written = decoder_flops(model.generate.decoder.config, num_tokens=16 + 20)
    assert found["generate.decoder"].flops == written - 2 * 48 * 64 * 16  # no image token's logits
    lines = {one.part.name: one.measured for one in measured_answering(model)}
    assert lines["classify.fusion.blocks.0..2"] == found["classify.fusion"]
    assert (
        lines["generate.decoder.transformer.blocks.0..2"] == found["generate.decoder.transformer"]
    )
    assert found["classify"].flops > 3 * found["classify.fusion.blocks.0"].flops > 0
