"""A model that answers as ONNX graphs: image.onnx, then its heads, held against torch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.data.questions.batches import TextForm
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.files import replacing_folder
from mmtrain.interop.decoder_graphs import BATCH, QuestionGraph
from mmtrain.interop.graph_folder import (
    describe_preprocess,
    describe_tokenizer,
    write_description,
)
from mmtrain.interop.graphs import Graph, Port
from mmtrain.interop.onnx_decoder import (
    Reading,
    WrittenFile,
    logits_apart,
    refuse_other_logits,
    write_decoder,
    write_file,
)
from mmtrain.interop.onnx_dialogues import write_onnx_dialogues
from mmtrain.interop.onnx_program import FORM, OPSET, check_packages
from mmtrain.interop.package import VqaModel
from mmtrain.interop.tower_graphs import (
    BATCHES,
    drawn_images,
    drawn_texts,
    with_plain_patches,
)
from mmtrain.models.answer_cache import read_together
from mmtrain.models.vqa import Vqa
from mmtrain.models.vqa_stage import Asked

_HEADS = ("classify", "generate")
_MOST_STEPS = 16
"""Tokens of an answer that are held against torch's at most."""


class AnswerImageGraph(nn.Module):
    """uint8 [B, 3, H, W] -> what each head reads of an image, [B, P, D]."""

    def __init__(self, model: Vqa) -> None:
        super().__init__()
        self.vision = with_plain_patches(model.vision)
        self.classify, self.generate = model.classify, model.generate

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Tokens of images; the pixels are normalised here."""
        image_BTD = self.vision(images)
        heads = (self.classify, self.generate)
        return tuple(head.image_tokens(image_BTD) for head in heads if head is not None)


class ChoiceGraph(nn.Module):
    """Image tokens [B, P, D], int64 [B, T], padding behind, and lengths [B] -> logits [B, A]."""

    def __init__(self, model: Vqa) -> None:
        super().__init__()
        self.model = model

    def forward(self, image_tokens: Tensor, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Choose answers."""
        asked = Asked(tokens_QT=input_ids, question_length_Q=lengths, length_Q=lengths)
        return self.model.choose(image_tokens, asked)


def write_onnx_answers(
    package: VqaModel, folder: Path, *, weights: str, say: Callable[[str], None]
) -> None:
    """Write the image's side, the heads, the tokenizer's files and model.json.

    Args:
        package: the model; it is not changed.
        folder: a new one; it is not made where something fails.
        weights: fp32, or fp16 or int8 for smaller files.
        say: how near to torch what was written is.

    Raises:
        UsageError: the extra is not installed, the exporter cannot take a part, or logits of fp32
            weights are not torch's.
    """
    check_packages()
    model = package.model
    model.requires_grad_(False)
    with replacing_folder(folder) as place:
        if model.config.reads_dialogues:
            entries = write_onnx_dialogues(package, place, weights=weights, say=say)
        else:
            entries = _write_heads(package, place, weights, say)
        if model.generate is not None:
            entries["answer"] = _describe_answer(package)
        entries["text"] = describe_tokenizer(package.tokenizer)
        package.tokenizer.save(place)
        facts = {"opset": OPSET, "weights": weights}
        write_description(place, form=FORM, facts=facts | entries)


def _write_heads(
    package: VqaModel, folder: Path, weights: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Of a model that is asked one question about one image."""
    model = package.model
    image = write_file(_image_graph(model), folder, weights=weights)
    rows = _drawn_rows(package)
    entries: dict[str, Any] = {
        "image": image.entry | describe_preprocess(model.clip.vision, package.preprocess)
    }
    if model.classify is not None:
        entries["classify"] = _write_choice(package, image, rows, folder, weights, say)
    if model.generate is not None:
        entries |= _write_answer(package, image, rows, folder, weights, say)
    return entries


def heads_of(model: Vqa) -> list[str]:
    """The names of the heads that are there."""
    return [head for head in _HEADS if getattr(model, head) is not None]


def _image_graph(model: Vqa) -> Graph:
    network, example = AnswerImageGraph(model), drawn_images(model.clip.vision)[:2]
    with torch.no_grad():
        made = network(example)
    return Graph(
        name="image",
        told="the image tower",
        network=network.eval(),
        example=(example,),
        inputs=(Port("images", (BATCH, *example.shape[1:])),),
        outputs=tuple(
            Port(f"{head}_image_tokens", (BATCH, *tokens.shape[1:]))
            for head, tokens in zip(heads_of(model), made, strict=True)
        ),
    )


def _drawn_rows(package: VqaModel) -> list[tuple[Tensor, Asked]]:
    """Images and a question about each, in batches of several sizes and lengths."""
    form = TextForm(tokenizer=package.tokenizer)
    texts = drawn_texts(package.tokenizer)
    tokens_QT, length_Q, _ = form.encode([(text, "") for text in texts])
    images = drawn_images(package.model.clip.vision).split(BATCHES)
    rows: list[tuple[Tensor, Asked]] = []
    for some, tokens, length in zip(
        images, tokens_QT.split(BATCHES), length_Q.split(BATCHES), strict=True
    ):
        cut = tokens[:, : int(length.max())]
        rows.append((some, Asked(tokens_QT=cut, question_length_Q=length, length_Q=length)))
    return rows


def _padded(asked: Asked, tokenizer: Tokenizer) -> Asked:
    missing = tokenizer.context_length - asked.tokens_QT.size(1)
    return replace(asked, tokens_QT=F.pad(asked.tokens_QT, (0, missing), value=tokenizer.pad_id))


def _write_choice(
    package: VqaModel,
    image: WrittenFile,
    rows: Sequence[tuple[Tensor, Asked]],
    folder: Path,
    weights: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    model, place = package.model, heads_of(package.model).index("classify")
    assert model.text is not None and package.vocabulary is not None
    tokenizer, answers = package.tokenizer, package.vocabulary.answers
    # As wide as a question may be: some towers of questions take no other width.
    rows = [(images, _padded(asked, tokenizer)) for images, asked in rows]
    images, asked = rows[-1]
    tokens_BPD = image.run(images[:2])[place]
    graph = Graph(
        name="classify",
        told="the classifier",
        network=ChoiceGraph(model).eval(),
        example=(tokens_BPD, asked.tokens_QT[:2], asked.length_Q[:2]),
        inputs=(
            Port("classify_image_tokens", (BATCH, *tokens_BPD.shape[1:])),
            Port("input_ids", (BATCH, tokenizer.context_length)),
            Port("lengths", (BATCH,)),
        ),
        outputs=(Port("logits", (BATCH, len(answers))),),
    )
    file = write_file(graph, folder, weights=weights)
    difference = 0.0
    for images, asked in rows:
        with torch.no_grad():
            wanted_QA = model.logits(images, asked).choice_QA
        (found_QA,) = file.run(image.run(images)[place], asked.tokens_QT, asked.length_Q)
        assert wanted_QA is not None
        difference = max(difference, logits_apart(found_QA, wanted_QA))
    refuse_other_logits(difference, weights=weights, told="the classifier")
    say(
        f"image.onnx, classify.onnx: opset {OPSET}, {weights}; logits beside torch's: at most "
        f"{difference:.1g} away"
    )
    beside = {"largest_difference": difference}
    return file.entry | {"answers": list(answers), "beside_torch": beside}


def _write_answer(
    package: VqaModel,
    image: WrittenFile,
    rows: Sequence[tuple[Tensor, Asked]],
    folder: Path,
    weights: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    model, place = package.model, heads_of(package.model).index("generate")
    generator, num_steps = model.generate, min(package.answer_length, _MOST_STEPS)
    assert generator is not None and generator.decoder.embed is not None
    readings: list[Reading] = []
    for images, asked in rows:
        with torch.no_grad():
            start = read_together(
                generator,
                generator.image_tokens(model.vision(images)),
                generator.decoder.embed.token(asked.tokens_QT),
                asked.length_Q,
                max_new_tokens=num_steps,
            )
        seen_BPD = image.run(images)[place]
        inputs = (seen_BPD, asked.tokens_QT, asked.length_Q)
        readings.append(Reading(inputs=inputs, start=start))
    return write_decoder(
        QuestionGraph(generator).eval(),
        readings,
        folder,
        weights=weights,
        num_steps=num_steps,
        say=say,
    )


def _describe_answer(package: VqaModel) -> dict[str, Any]:
    tokenizer = package.tokenizer
    return {
        "most_tokens": package.answer_length,
        "end_ids": [] if tokenizer.eot_id is None else [tokenizer.eot_id],
        "end_of_word": "</w>" if tokenizer.config.kind == "clip" else None,
    }
