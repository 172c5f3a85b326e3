"""A real but tiny model, a shard of pictures for it, and the page's server around both."""

from pathlib import Path

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.eval import Encoder
from mmtrain.models import Clip, ClipConfig
from mmtrain.models.text import TextConfig
from mmtrain.models.vision import VisionConfig
from mmtrain.nn import TransformerConfig
from tests.data.shard_files import encoded, picture, write_shard

TOKENIZER = build_tokenizer(TokenizerConfig(context_length=16))
SIDE = 16
COUNT = 7


def tiny_clip(*, bias: float | None = None) -> Clip:
    core = TransformerConfig(dim=16, num_layers=2, num_heads=2)
    vision = VisionConfig(transformer=core, image_size=SIDE, patch_size=8)
    text = TextConfig(
        transformer=TransformerConfig(dim=16, num_layers=1, num_heads=2, mask="causal"),
        vocab_size=TOKENIZER.vocab_size,
        context_length=16,
        end_token_id=TOKENIZER.eot_id,
    )
    config = ClipConfig(vision=vision, text=text, embed_dim=12, init_logit_bias=bias)
    return Clip(config).init_weights(0).eval()


def tiny_encoder(model: Clip) -> Encoder:
    preprocess = PreprocessConfig(image_size=SIDE)
    return Encoder(model=model, tokenizer=TOKENIZER, preprocess=preprocess, batch_size=4)


def write_pictures(path: Path, *, broken: tuple[int, ...] = ()) -> Path:
    """COUNT pictures with captions, in the three kinds of file; some of them no pictures."""
    samples = []
    for number in range(COUNT):
        kind = ("PNG", "JPEG", "WEBP")[number % 3]
        data = encoded(picture((20 + number, 18), seed=number), kind)
        data = b"no picture" if number in broken else data
        samples.append((f"{number:05d}", {kind.lower(): data, "txt": f"picture {number}"}))
    return write_shard(path, samples)
