"""How a pipeline cuts a model into stages, each of which shares its parts with the whole.

Stage i of a CLIP holds slice i of both towers, stage i of a decoder a slice of its layers. The
stages of a VQA model are first the towers', then the heads', so many of each as balances their
FLOPs; within either, slices lie side by side. One chain of stages carries all of it.
"""

import copy
from typing import TypeVar

from torch import nn

from mmtrain.errors import UsageError
from mmtrain.models import ClipStage, Decoder, DecoderStage, TextTower, VisionTower
from mmtrain.models.classify_answers import AnswerClassifier
from mmtrain.models.flops import block_parameters
from mmtrain.models.generate_answers import AnswerGenerator
from mmtrain.models.vqa import VqaStage
from mmtrain.nn import Transformer
from mmtrain.parallel.mesh import Layout
from mmtrain.parallel.pipeline import interleaves, num_stages, stage_indices

_Tower = TypeVar("_Tower", VisionTower, TextTower, Decoder)
_Module = TypeVar("_Module", bound=nn.Module)


def slice_stages(whole: nn.Module, layout: Layout) -> list[nn.Module]:
    """The slices of a model that this rank holds.

    Args:
        whole: a ClipStage, VqaStage or DecoderStage.
        layout: the mesh.

    Raises:
        UsageError: there are more stages than layers.
    """
    check_slices(whole, layout)
    total = num_stages(layout)
    return [slice_stage(whole, i, total) for i in stage_indices(layout)]


def check_slices(whole: nn.Module, layout: Layout) -> None:
    """Refuse more stages than layers.

    Raises:
        UsageError: naming what works.
    """
    if isinstance(whole, VqaStage):
        check_vqa_stages(layout, whole)
    elif isinstance(whole, ClipStage):
        towers = {"vision": whole.vision, "text": whole.text}
        check_stages(layout, {n: t.transformer.config.num_layers for n, t in towers.items()})


def slice_stage(whole: nn.Module, index: int, num_stages: int) -> nn.Module:
    """Stage `index` of the pipeline. Its parts are shared with `whole`, nothing is copied."""
    if isinstance(whole, ClipStage):
        return ClipStage(
            slice_tower(whole.vision, index, num_stages), slice_tower(whole.text, index, num_stages)
        )
    if isinstance(whole, VqaStage):
        return slice_vqa(whole, index, num_stages)
    assert isinstance(whole, DecoderStage), "no other model is cut into stages"
    return DecoderStage(slice_tower(whole.decoder, index, num_stages))


def check_stages(layout: Layout, num_layers: dict[str, int]) -> None:
    """Refuse more stages than layers.

    Args:
        layout: the mesh.
        num_layers: of each tower, by the tower's name.

    Raises:
        UsageError: naming the tower and what works.
    """
    total = num_stages(layout)
    for name, layers in num_layers.items():
        if total > layers:
            each = (
                f" with two stages a rank ({layout.config.schedule})" if interleaves(layout) else ""
            )
            raise UsageError(
                f"parallel.pp = {layout.size('pp')}{each} cuts model.{name}.transformer.num_layers "
                f"= {layers} into {total} stages; use parallel.pp <= "
                f"{layers * layout.size('pp') // total}"
            )


def layer_range(num_layers: int, index: int, num_stages: int) -> range:
    """The layers of stage `index`: an even cut, earlier stages taking the smaller share."""
    return range(num_layers * index // num_stages, num_layers * (index + 1) // num_stages)


def slice_blocks(transformer: Transformer, index: int, num_stages: int) -> Transformer:
    """The stage's share of a stack of blocks, under their names; `transformer` stays whole."""
    part = _shallow(transformer)
    kept = layer_range(transformer.config.num_layers, index, num_stages)
    blocks = {name: block for name, block in transformer.blocks.items() if int(name) in kept}
    part.blocks = nn.ModuleDict(blocks)
    return part


def slice_tower(tower: _Tower, index: int, num_stages: int) -> _Tower:
    """The stage's share of a tower or decoder; names of parameters do not change."""
    part = _shallow(tower)
    part.transformer = slice_blocks(tower.transformer, index, num_stages)
    if index > 0:
        part.embed = None
    if index < num_stages - 1:
        part.head = None
    return part


def _shallow(module: _Module) -> _Module:
    """A module with a child table of its own over the same parts."""
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


def slice_vqa(whole: VqaStage, index: int, num_stages: int) -> VqaStage:
    """Stage `index`: of the towers, or of the heads that follow them."""
    if num_stages == 1:
        return whole
    num_towers = num_tower_stages(whole, num_stages)
    assert whole.vision is not None
    if index < num_towers:
        text = whole.text and slice_tower(whole.text, index, num_towers)
        part = VqaStage(slice_tower(whole.vision, index, num_towers), text, None, None)
    else:
        place, num = index - num_towers, num_stages - num_towers
        classify = whole.classify and _slice_classifier(whole.classify, place, num)
        generate = whole.generate and _slice_generator(whole.generate, place, num)
        part = VqaStage(None, None, classify, generate)
    if whole.text is not None:
        part.question_length = whole.text.config.context_length
    if index > 0:
        part.takes = _handed_on(whole, index - 1, num_towers)
    if index < num_stages - 1:
        part.gives = _handed_on(whole, index, num_towers)
    return part


def _handed_on(whole: VqaStage, index: int, num_towers: int) -> tuple[str, ...]:
    """Names of what VQA stage `index` hands on, in order."""
    choosing = ("image", "question") if whole.classify is not None else ()
    if index < num_towers:
        return choosing or ("image",)
    if whole.generate is None:
        return choosing
    tied = ("tied",) if whole.generate.decoder.config.tied_head else ()
    return (*choosing, "written", *tied)


def _slice_classifier(whole: AnswerClassifier, index: int, num_stages: int) -> AnswerClassifier:
    part = _shallow(whole)
    part.fusion = slice_blocks(whole.fusion, index, num_stages)
    if index > 0:
        part.connector = part.question_norm = part.question = None
        part.front_doors = nn.ModuleDict()
    if index < num_stages - 1:
        part.norm = part.choose = None
    return part


def _slice_generator(whole: AnswerGenerator, index: int, num_stages: int) -> AnswerGenerator:
    part = _shallow(whole)
    part.decoder = slice_tower(whole.decoder, index, num_stages)
    if index > 0:
        part.connector = part.front_door = None
    return part


def num_tower_stages(whole: VqaStage, num_stages: int) -> int:
    """Stages that the towers get, the heads getting the rest: the slowest stage is the fastest
    that it can be, by the FLOPs of an image and a question."""
    longest = _longest(whole)
    towers, heads = _flops(whole)
    fits = range(max(1, num_stages - longest[1]), min(num_stages - 1, longest[0]) + 1)
    return min(fits, key=lambda num: max(towers / num, heads / (num_stages - num)))


def check_vqa_stages(layout: Layout, whole: VqaStage) -> None:
    """Refuse more stages than the longest tower and the longest head have layers.

    Raises:
        UsageError: naming what works.
    """
    total, layers = num_stages(layout), sum(_longest(whole))
    if total > layers:
        each = f" with two stages a rank ({layout.config.schedule})" if interleaves(layout) else ""
        raise UsageError(
            f"parallel.pp = {layout.size('pp')}{each} cuts the {layers} layers of the longest "
            f"tower and the longest head into {total} stages; use parallel.pp <= "
            f"{layers * layout.size('pp') // total}"
        )


def _stacks(whole: VqaStage) -> tuple[list[tuple[Transformer, int]], list[tuple[Transformer, int]]]:
    """The towers' and the heads' stacks of blocks, with the tokens that each takes."""
    assert whole.vision is not None
    vision = whole.vision.config
    towers = [(whole.vision.transformer, vision.num_patches + vision.num_prefix)]
    heads: list[tuple[Transformer, int]] = []
    if whole.text is not None and whole.classify is not None:
        towers.append((whole.text.transformer, whole.text.config.context_length))
        heads.append((whole.classify.fusion, whole.text.config.context_length))
    if whole.generate is not None:
        decoder = whole.generate.decoder
        heads.append((decoder.transformer, decoder.config.context_length))
    return towers, heads


def _longest(whole: VqaStage) -> tuple[int, int]:
    """Layers of the longest tower and of the longest head."""
    towers, heads = (max(t.config.num_layers for t, _ in part) for part in _stacks(whole))
    return towers, heads


def _flops(whole: VqaStage) -> tuple[int, int]:
    """Products of the towers' and of the heads' blocks, in proportion."""
    towers, heads = (
        sum(t.config.num_layers * block_parameters(t.config) * tokens for t, tokens in part)
        for part in _stacks(whole)
    )
    return towers, heads
