"""open_clip's model behind our protocol, and its own way to predict a picture's class."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from mmtrain.data.images.transforms import PreprocessConfig


def tiny_open_clip(image_size: int) -> open_clip.CLIP:
    """Two small towers of random weights, large ones: else all pictures are alike to them."""
    torch.manual_seed(3)
    vision = open_clip.CLIPVisionCfg(
        image_size=image_size, layers=2, width=64, head_width=32, patch_size=8
    )
    text = open_clip.CLIPTextCfg(context_length=77, vocab_size=49408, width=32, heads=2, layers=2)
    model = open_clip.CLIP(32, vision, text).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("in_proj_weight", "out_proj.weight", "c_fc.weight")):
                parameter.mul_(3)
    return model


class OpenClipTowers:
    """Takes uint8 images and normalises them as open_clip's preprocess does."""

    def __init__(self, model: open_clip.CLIP) -> None:
        self.model = model
        self.mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
        self.std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        return self.model.encode_image((images_BCHW.float() / 255 - self.mean) / self.std)

    def encode_text(self, tokens_BT: Tensor) -> Tensor:
        return self.model.encode_text(tokens_BT)

    @staticmethod
    def preprocess(image_size: int, resize_mode: Any = "shortest") -> PreprocessConfig:
        return PreprocessConfig(image_size=image_size, resize_mode=resize_mode)

    @staticmethod
    def their_preprocess(image_size: int, resize_mode: Any = "shortest") -> Any:
        config = PreprocessCfg(size=image_size, resize_mode=resize_mode)
        return image_transform_v2(config, is_train=False)


@torch.no_grad()
def open_clip_prediction(
    model: open_clip.CLIP,
    image_size: int,
    names: Sequence[str],
    templates: Sequence[Callable[[str], str]],
    resize_mode: str = "shortest",
) -> Callable[[bytes], str]:
    """Their zero-shot loop for one file: classifier, preprocess, logits, argmax."""
    preprocess = OpenClipTowers.their_preprocess(image_size, resize_mode)
    classifier = open_clip.build_zero_shot_classifier(
        model,
        tokenizer=open_clip.SimpleTokenizer(),
        classnames=names,
        templates=templates,
        num_classes_per_batch=3,
        device="cpu",
    )

    @torch.no_grad()
    def predict(data: bytes) -> str:
        # In RGB first, as open_clip reads shards ("pilrgb") and torchvision folders.
        pixels = preprocess(Image.open(io.BytesIO(data)).convert("RGB"))
        logits = 100.0 * model.encode_image(pixels[None], normalize=True) @ classifier
        return names[int(logits.argmax(1))]

    return predict
