"""Our zero-shot evaluation gives the predictions of open_clip's loop, its own preprocess."""

import io
import tarfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from mmtrain.data.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.data.transforms import PreprocessConfig
from mmtrain.eval import Encoder, evaluate_zero_shot
from mmtrain.eval.prompts import TEMPLATES
from tests.data.shard_files import encoded, picture, write_shard

SIDE = 32
NAMES = ["red fox", "grey wolf", "lighthouse", "paper boat", "old oak", "brass bell", "snow", "key"]


class OpenClipTowers:
    """open_clip's model behind our protocol: the pixels are normalised as its preprocess does."""

    def __init__(self, model: open_clip.CLIP) -> None:
        self.model = model
        self.mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
        self.std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        return self.model.encode_image((images_BCHW.float() / 255 - self.mean) / self.std)

    def encode_text(self, tokens_BT: Tensor) -> Tensor:
        return self.model.encode_text(tokens_BT)


@pytest.fixture(scope="module")
def model() -> open_clip.CLIP:
    """Random weights."""
    torch.manual_seed(3)
    vision = open_clip.CLIPVisionCfg(
        image_size=SIDE, layers=2, width=64, head_width=32, patch_size=8
    )
    text = open_clip.CLIPTextCfg(context_length=77, vocab_size=49408, width=32, heads=2, layers=2)
    return open_clip.CLIP(32, vision, text).eval()


def write_pictures(path: Path) -> Path:
    """Every mode and kind that decoders and resizes treat in their own way."""
    kinds = [
        ("RGB", "JPEG"),
        ("RGB", "PNG"),
        ("RGB", "WEBP"),
        ("RGBA", "PNG"),
        ("P", "PNG"),
        ("L", "JPEG"),
        ("L", "PNG"),
        ("CMYK", "JPEG"),
    ]
    samples = []
    for number in range(48):
        mode, kind = kinds[number % len(kinds)]
        image = picture((33 + 11 * (number % 6), 28 + 17 * (number % 5)), mode=mode, seed=number)
        extension = {"JPEG": "jpg"}.get(kind, kind.lower())
        files = {extension: encoded(image, kind), "cls": str(number % len(NAMES))}
        samples.append((f"{number:03d}", files))
    return write_shard(path, samples)


@torch.no_grad()
def open_clip_predictions(
    model: open_clip.CLIP, path: Path, templates: list[str], resize_mode: str
) -> list[str]:
    """Their zero-shot loop: classifier, preprocess, logits, argmax."""
    cfg = PreprocessCfg(size=SIDE, resize_mode=resize_mode)
    preprocess: Any = image_transform_v2(cfg, is_train=False)
    classifier = open_clip.build_zero_shot_classifier(
        model,
        tokenizer=open_clip.SimpleTokenizer(),
        classnames=NAMES,
        templates=[lambda name, template=template: template.format(name) for template in templates],
        num_classes_per_batch=3,
        device="cpu",
    )
    predictions = []
    with tarfile.open(path) as tar:
        images = [member for member in tar.getmembers() if not member.name.endswith("cls")]
        for member in images:
            file = tar.extractfile(member)
            assert file is not None
            pixels = preprocess(Image.open(io.BytesIO(file.read())))
            features = model.encode_image(pixels[None], normalize=True)
            logits = 100.0 * features @ classifier
            predictions.append(NAMES[int(logits.topk(5)[1][0, 0])])
    return predictions


@pytest.mark.parametrize(
    ("resize_mode", "templates"), [("shortest", "simple"), ("squash", "name"), ("longest", "name")]
)
def test_predictions_are_open_clips(
    tmp_path: Path, model: open_clip.CLIP, resize_mode, templates: str
) -> None:
    data = write_pictures(tmp_path / "pictures.tar")
    spelled = [template.replace("{name}", "{}") for template in TEMPLATES[templates]]
    theirs = open_clip_predictions(model, data, spelled, resize_mode)

    encoder = Encoder(
        model=OpenClipTowers(model),
        tokenizer=build_tokenizer(TokenizerConfig()),
        preprocess=PreprocessConfig(image_size=SIDE, resize_mode=resize_mode),
        batch_size=7,
    )
    result = evaluate_zero_shot(
        encoder,
        data=str(data),
        classes=NAMES,
        label_key="cls",
        templates=templates,
        num_examples=48,
    )

    ours = {one.key: one.predicted for one in result.best}
    assert [ours[f"{number:03d}"] for number in range(48)] == theirs
    assert len(set(theirs)) > 2, "a model that always says the same proves nothing"
    right = sum(name == NAMES[number % len(NAMES)] for number, name in enumerate(theirs))
    assert result.figures["top1"] == right / 48
