"""Models of 135 M weights and more evaluate to the same figures and outcomes on one rank and on two
that take the samples in another order: products of their sizes go through other kernels."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.eval.forward_size import FIXED_BATCH
from mmtrain.loading import save_model
from mmtrain.loading.vqa import VqaModel, save_vqa
from mmtrain.models import Clip, ClipConfig, TextConfig, VisionConfig
from mmtrain.nn import TransformerConfig
from tests.cli.test_same_bits import found_by, run_all, ways
from tests.data.shard_files import encoded, picture, write_shard
from tests.eval.questions.answerers import SIDE, TOKENIZER, make_answerer
from tests.ranks import run_ranks

COUNT = FIXED_BATCH + 6
BLOCKS = TransformerConfig(dim=768, num_layers=7, num_heads=12)
ASKED = ("is it red?", "what is the big thing on the left of the small one?")


def write_sets(folder: Path) -> tuple[Path, Path]:
    """Pictures with classes and questions, and the same in another order."""
    samples = []
    for number in range(COUNT):
        asked = ASKED[number % 2 : number % 2 + 1 + (number % 5 == 0)]
        questions = [
            {"question_id": 2 * number + place, "question": text, "answers": ["yes"]}
            for place, text in enumerate(asked)
        ]
        files = {"json": json.dumps({"questions": questions}), "cls": str(number % 3)}
        image = encoded(picture((SIDE, SIDE), seed=number), "PNG")
        samples.append((f"{number:05d}", {"png": image, **files}))
    turned = [samples[place] for place in np.random.default_rng(0).permutation(COUNT)]
    return write_shard(folder / "a.tar", samples), write_shard(folder / "turned.tar", turned)


def save_clip(folder: Path) -> None:
    text = TextConfig(
        transformer=TransformerConfig(dim=512, num_layers=8, num_heads=8, mask="causal"),
        vocab_size=TOKENIZER.vocab_size,
        context_length=40,
        end_token_id=TOKENIZER.eot_id,
    )
    vision = VisionConfig(
        transformer=TransformerConfig(dim=768, num_layers=12, num_heads=12),
        image_size=SIDE,
        patch_size=8,
    )
    model = Clip(ClipConfig(vision=vision, text=text, embed_dim=512)).init_weights(0).eval()
    assert sum(weights.numel() for weights in model.parameters()) > 130e6
    save_model(
        folder, model=model, tokenizer=TOKENIZER, preprocess=PreprocessConfig(image_size=SIDE)
    )


def save_answerer(folder: Path) -> None:
    answerer = make_answerer("causal", core=BLOCKS)
    assert sum(weights.numel() for weights in answerer.model.parameters()) > 130e6
    save_vqa(
        folder,
        VqaModel(
            model=answerer.model,
            tokenizer=TOKENIZER,
            preprocess=answerer.preprocess,
            vocabulary=None,
            answer_length=3,
        ),
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_large_models_too(tmp_path: Path) -> None:
    sets, alone = write_sets(tmp_path), tmp_path / "on-1"
    save_clip(tmp_path / "clip")
    save_answerer(tmp_path / "answerer")
    (tmp_path / "classes.txt").write_text("dot\nblue dot\na thing that is red\n")
    classes = ["--classes", str(tmp_path / "classes.txt"), "--label-key", "cls"]
    kinds = {"zero-shot": ("clip", classes), "vqa": ("answerer", [])}
    turned: list[list[str]] = []
    for kind, (model, more) in kinds.items():
        plain, other = (
            ["eval", kind, "--model", str(tmp_path / model), "--data", str(path), *more]
            for path in sets
        )
        (words,) = ways(plain, alone / kind, 1)
        assert main(words) == 0
        turned += ways([*other, "--workers", "2"], tmp_path / "on-2" / kind, 7)
    run_ranks(run_all, 2, turned)
    for kind in kinds:
        found = [found_by(tmp_path / place) for place in (f"on-1/{kind}/1", f"on-2/{kind}/7")]
        assert found[0] == found[1] and len(found[0][1]) >= COUNT, kind
