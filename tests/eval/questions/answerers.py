"""Real models that answer, with a tokenizer, drawn and not trained."""

from dataclasses import replace
from typing import Any

import torch

from mmtrain.data.images.tiles import Pieces, TilesConfig
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.questions.answers import AnswerVocabulary
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.models import Clip, ClipConfig, TextConfig, VisionConfig
from mmtrain.models.classify_answers import ClassifyConfig
from mmtrain.models.generate_answers import GenerateConfig
from mmtrain.models.vqa import Head, Vqa, VqaConfig
from mmtrain.nn import TransformerConfig
from mmtrain.nn.front_door import FrontDoorConfig
from mmtrain.peft.prompts import PromptConfig

TOKENIZER = build_tokenizer(TokenizerConfig(context_length=40))
ANSWERS = ("yes", "no", "red", "a blue one")
SIDE, PATCHES, ANSWER_LENGTH = 16, 4, 6
CORE = TransformerConfig(dim=32, num_layers=2, num_heads=2)
READS = ("causal", "prefix", "block", "dialogues", "tiles", "learned")
"""How a decoder reads an image and its question: its mask; turns, of one piece or of several; with
a learned prefix before all."""


def make_answerer(
    reads: str = "causal",
    *,
    head: Head = "generate",
    core: TransformerConfig = CORE,
    prompt: PromptConfig | None = None,
    **options: Any,
) -> Answerer:
    """One that reads so, its towers and its decoder of the same blocks."""
    dialogues = reads in ("dialogues", "tiles")
    mask = reads if reads in ("prefix", "block") else "causal"
    clip = ClipConfig(
        vision=VisionConfig(transformer=core, image_size=SIDE, patch_size=8),
        text=TextConfig(
            transformer=replace(core, mask="causal"),
            vocab_size=TOKENIZER.vocab_size,
            context_length=40,
        ),
        embed_dim=16,
    )
    generate = GenerateConfig(
        transformer=replace(core, mask=mask),
        vocab_size=TOKENIZER.vocab_size,
        text_length=120 if dialogues else 40 + ANSWER_LENGTH,
        reads="dialogues" if dialogues else "questions",
        prompt=PromptConfig(kind="prefix", num_tokens=3) if reads == "learned" else prompt,
    )
    chooses = head == "classify"
    config = VqaConfig(
        front_door=FrontDoorConfig(entries=5, places=("image", "question", "vision"))
        if chooses
        else FrontDoorConfig(entries=5, places=("image",)),
        classify=ClassifyConfig(fusion=core, num_answers=len(ANSWERS)) if chooses else None,
        generate=None if chooses else generate,
        tiles=TilesConfig(most=4) if reads == "tiles" else None,
    )
    model = Vqa(clip, config).init_weights(0)
    towers = Clip(clip).init_weights(0)
    for mine, other in ((model.vision, towers.vision), (model.text, towers.text)):
        if mine is not None:
            state = other.state_dict().items()
            drawn = {k: v for k, v in state if not k.startswith("head.")}
            mine.load_state_dict(mine.state_dict() | drawn)
    draw = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "embed.token" in name or "fuse" in name or "prompt" in name:
            parameter.data.normal_(0.0, 0.5, generator=draw)
            if name.endswith("embed.token.weight"):
                parameter.data[TOKENIZER.eot_id] = 0.0  # never the likeliest: no answer ends early
    return Answerer(
        model=model.eval(),
        tokenizer=TOKENIZER,
        preprocess=PreprocessConfig(image_size=SIDE),
        vocabulary=AnswerVocabulary(answers=ANSWERS) if chooses else None,
        answer_length=ANSWER_LENGTH,
        head=head,
        **options,
    )


def drawn(numbers: list[int], *, in_tiles: bool = False) -> Pieces:
    """Images by their numbers; in tiles each third has one piece, the others two and five."""
    cuts = []
    for number in numbers:
        draw = torch.Generator().manual_seed(number)
        count = (1, 2, 5)[number % 3] if in_tiles else 1
        place = [[-1, -1], *[[n // 2, n % 2] for n in range(count - 1)]]
        shape = (count, 3, SIDE, SIDE)
        pixels = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
        cuts.append((pixels, torch.tensor(place)))
    return Pieces.joined(cuts)
