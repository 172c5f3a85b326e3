"""What each part of a model gives, costs and keeps, measured by one pass without memory.

The pass runs on fake tensors: the model's own code and the kernels that torch picks on this
machine's CPU, with shapes in place of numbers. So nothing is counted that would not run.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mmtrain.models import Clip, ClipConfig
from mmtrain.models.dialogues import DialogueGenerator, Told
from mmtrain.models.vqa import Vqa, VqaConfig
from mmtrain.report.summary import Part, summarize, vqa_parts


def _attention_flops(q: tuple[int, ...], k: tuple[int, ...], *_: Any, **__: Any) -> int:
    """q k^T and its product with the values, from the shapes [B, N, T, H] and [B, K, S, H]."""
    return 4 * q[0] * q[1] * q[2] * k[2] * q[3]


# A kernel that torch's counter takes for nothing.
_KERNELS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@dataclass(kw_only=True)
class Measured:
    """One module, for one image or one text."""

    shape: tuple[int, ...] = ()
    """Of its output, without the batch; the last one's where it runs several times."""
    flops: int = 0
    """Forward; a multiplication and an addition count as two."""
    kept_bytes: int = 0
    """What its forward keeps for its backward in fp32, weights apart."""


@dataclass(frozen=True, kw_only=True)
class MeasuredPart:
    """A line of the summary with its measures."""

    part: Part
    measured: Measured | None
    """None for what is no module."""


def measured_parts(config: ClipConfig) -> list[MeasuredPart]:
    """The lines of a CLIP's summary, measured."""
    return _with_measures(summarize(config).parts, measure(config))


def measured_answering(model: Vqa) -> list[MeasuredPart]:
    """The lines of a model that answers, measured."""
    return _with_measures(vqa_parts(model), measure_answering(model.clip, model.config))


def _with_measures(parts: list[Part], modules: Mapping[str, Measured]) -> list[MeasuredPart]:
    """Equal blocks are one line of a summary, and its measures are theirs together."""
    lines: list[MeasuredPart] = []
    stack = ""
    for part in parts:
        if ".blocks.0" in part.name:
            stack = part.name.partition(".blocks.0")[0]
        name = part.name.replace("each.", f"{stack}.blocks.0.", 1).partition(".blocks.0..")[0]
        lines.append(MeasuredPart(part=part, measured=modules.get(name)))
    return lines


def measure(config: ClipConfig) -> dict[str, Measured]:
    """Every module of both towers by its dotted name; a text has its full context."""
    size, length = config.vision.image_size, config.text.max_ids
    with FakeTensorMode():
        model = Clip(config)
        # Groups of equal length look at the numbers, and a batch of one has no groups.
        model.text.num_groups = 1
        image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        tokens, length_B = torch.ones(1, length, dtype=torch.int64), torch.tensor([length])
        return _tower("vision", model.vision, lambda: model.vision(image)) | _tower(
            "text", model.text, lambda: model.text(tokens, length_B=length_B)
        )


def measure_answering(clip: ClipConfig, config: VqaConfig) -> dict[str, Measured]:
    """Every module of a model that answers, for one image with one question: the question as long
    as the tokenizer makes it, of the decoder's text all that it has room for."""
    size, length = clip.vision.image_size, clip.text.max_ids
    with FakeTensorMode():
        model = Vqa(clip, config)
        image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        image_BTD = torch.zeros(1, clip.vision.num_tokens, clip.vision.transformer.dim)
        length_Q = torch.tensor([length])
        found = _tower("vision", model.vision, lambda: model.vision(image))
        if (text := model.text) is not None and (classify := model.classify) is not None:
            text.num_groups = 1  # as in `measure`
            tokens_QT = torch.ones(1, length, dtype=torch.int64)
            question_QTD = torch.zeros(1, length, clip.text.transformer.dim)
            found |= _tower("text", text, lambda: text(tokens_QT, length_B=length_Q))
            found |= _tower(
                "classify", classify, lambda: classify(image_BTD, question_QTD, length_Q)
            )
        if isinstance(dialogues := model.generate, DialogueGenerator):
            told, place_12 = _one_dialogue(dialogues), torch.full((1, 2), -1)
            found |= _tower("generate", dialogues, lambda: dialogues(image_BTD, place_12, told))
        elif (generate := model.generate) is not None and config.generate is not None:
            assert config.generate.text_length is not None, "a model has it"
            text_QT = torch.ones(1, config.generate.text_length, dtype=torch.int64)
            length_QA = torch.tensor([config.generate.text_length])
            found |= _tower(
                "generate", generate, lambda: generate(image_BTD, text_QT, length_Q, length_QA)
            )
    return found


def _one_dialogue(generate: DialogueGenerator) -> Told:
    """As long as there can be, with one piece of an image."""
    assert generate.connector is not None
    length, image = generate.decoder.config.context_length, generate.connector.num_tokens
    return Told(
        tokens_BT=torch.ones(1, length, dtype=torch.int64),
        image_BT=(torch.arange(length) < image)[None],
    )


@dataclass
class _Watch:
    """Where the pass is, and what has been seen of each module on the way."""

    found: dict[str, Measured]
    inside: list[str] = field(default_factory=list)
    seen: dict[int, Any] = field(default_factory=dict)
    """Storages that were counted, or are weights; held, so that no other gets their address."""

    def keep(self, tensor: Tensor) -> Tensor:
        """A tensor is kept for the backward: count its storage once, in all modules around."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen[storage._cdata] = storage
            for name in self.inside:
                self.found[name].kept_bytes += storage.nbytes()
        return tensor


def _tower(root: str, tower: nn.Module, run: Callable[[], object]) -> dict[str, Measured]:
    names = {module: f"{root}.{name}".rstrip(".") for name, module in tower.named_modules()}
    watch = _Watch(found={name: Measured() for name in names.values()})
    for weight in tower.parameters():
        watch.seen[weight.untyped_storage()._cdata] = weight.untyped_storage()

    def enter(module: nn.Module, _: Any) -> None:
        watch.inside.append(names[module])

    def leave(module: nn.Module, _: Any, output: Any) -> None:
        watch.inside.pop()
        if isinstance(output, Tensor):
            watch.found[names[module]].shape = tuple(output.shape[1:])

    for module in names:
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    with (
        FlopCounterMode(display=False, custom_mapping=_KERNELS) as counter,
        torch.autograd.graph.saved_tensors_hooks(watch.keep, lambda tensor: tensor),
    ):
        run()
    for name, by_operation in counter.get_flop_counts().items():
        # The counter calls the tower by its class.
        full = ".".join([root, *name.split(".")[1:]])
        if name != "Global" and full in watch.found:
            watch.found[full].flops = sum(by_operation.values())
    return watch.found
