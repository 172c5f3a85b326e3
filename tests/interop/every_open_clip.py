"""Every config of open_clip, shrunk in depth, with random weights, in open_clip and here."""

import contextlib
import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mmtrain.errors import UsageError
from mmtrain.interop.open_clip import from_open_clip
from mmtrain.interop.open_clip_config import config_from_open_clip
from mmtrain.interop.open_clip_text_trunk import ENCODERS
from mmtrain.interop.timm_names import _SIZES
from mmtrain.models import Clip, ClipConfig
from tests.interop.peers import randomise, unit

NAMES = sorted(
    path.name.removesuffix(".json") for path in (files("open_clip") / "model_configs").iterdir()
)
DEPTHS: dict[str, dict[str, Any]] = {
    "vit_pe": {"depth": 2},
    "vit_": {"depth": 2},
    "eva": {"depth": 2},
    "convnext": {"depths": (1, 1, 2, 1)},
    "fastvit_mci3": {"layers": (1, 1, 1, 1, 1)},
    "fastvit_mci4": {"layers": (1, 1, 1, 1, 1)},
    "fastvit": {"layers": (1, 1, 1, 1)},
    "vitamin": {"depth": 2},
    "swin": {"depths": (1, 1, 2, 1)},
}
"""Arguments of timm's models by how their names start."""


def published(name: str) -> dict[str, Any]:
    """A model_cfg with few layers of the published widths and sizes, and few words where there
    would be GBs of them."""
    cfg = json.loads((files("open_clip") / "model_configs" / f"{name}.json").read_text())
    for section, shallow in (("vision_cfg", 2), ("text_cfg", 2)):
        layers = cfg[section].get("layers")
        if layers is not None:
            cfg[section]["layers"] = [1, 2, 1, 1] if isinstance(layers, list) else shallow
        if cfg[section].get("vocab_size", 0) > 100_000:
            cfg[section]["vocab_size"] = 1000
        if "timm_model_pretrained" in cfg[section]:
            cfg[section]["timm_model_pretrained"] = False
    if "hf_model_name" in cfg["text_cfg"]:
        cfg["text_cfg"]["hf_model_pretrained"] = False
    return cfg


@contextlib.contextmanager
def shallow_timm() -> Iterator[None]:
    """timm's models have few layers in both of the libraries."""
    import timm

    create = timm.create_model

    def shallow(name: str, **kwargs: Any) -> Any:
        more = next((a for start, a in DEPTHS.items() if name.startswith(start)), {})
        return create(name, **(more | kwargs))

    few = {size: args | {"depth": 2} for size, args in _SIZES.items()}
    with mock.patch.object(timm, "create_model", shallow), mock.patch.dict(_SIZES, few):
        yield


@contextlib.contextmanager
def shallow_encoders() -> Iterator[None]:
    """transformers' encoders have two layers and few words in both, and no hub is asked."""
    from transformers import AutoConfig

    few = {"num_hidden_layers": 2, "num_layers": 2, "encoder_layers": 2, "decoder_layers": 1}
    small = {
        name: (kind, settings | few | {"vocab_size": 1000, "num_decoder_layers": 1})
        for name, (kind, settings) in ENCODERS.items()
    }

    def from_pretrained(name: str) -> Any:
        kind, settings = small[name]
        return AutoConfig.for_model(kind, **settings)

    with (
        mock.patch.dict(ENCODERS, small),
        mock.patch("open_clip.hf_model.AutoConfig.from_pretrained", from_pretrained),
    ):
        yield


@contextlib.contextmanager
def matrices_undrawn() -> Iterator[None]:
    """Makers of models leave matrices as memory was: `randomise` writes over every one of them, and
    drawing them twice is a third of a comparison."""
    with contextlib.ExitStack() as patches:
        for name in ("uniform_", "normal_", "erfinv_"):
            real = getattr(torch.Tensor, name)

            def draw(tensor: Tensor, *args: Any, real: Any = real, **options: Any) -> Tensor:
                return real(tensor, *args, **options) if tensor.ndim <= 1 else tensor

            patches.enter_context(mock.patch.object(torch.Tensor, name, draw))
        yield


def compare(name: str) -> tuple[ClipConfig, float]:
    """Our config, and the largest difference of a feature of images and texts, of unit norm.

    Raises:
        UsageError: we do not read it.
    """
    from open_clip.model import CLIP, CustomTextCLIP

    model_cfg = published(name)
    with shallow_timm(), shallow_encoders():
        config_from_open_clip(model_cfg)  # refused before anything is built
        fields = json.loads(json.dumps(model_cfg))
        kind = CustomTextCLIP if fields.pop("custom_text", False) else CLIP
        if "hf_model_name" in fields["text_cfg"]:
            kind = CustomTextCLIP
        fields.pop("nonscalar_logit_scale", None)
        with matrices_undrawn():
            theirs = kind(**fields)
        theirs = spread(randomise(theirs))
        config, tensors = from_open_clip(model_cfg, dict(theirs.state_dict()))
        with torch.device("meta"):
            ours = Clip(config)
        ours.load_state_dict(tensors, assign=True)
        ours.eval()
    return config, difference(ours, theirs)


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Statistics of batch norms that are not 0 and 1."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return model


@torch.no_grad()
def difference(ours: Clip, theirs: Any) -> float:
    """Of two images and two texts."""
    vision = ours.config.vision
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, vision.image_size, vision.image_size)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    mean, std = (torch.tensor(x)[:, None, None] for x in (vision.mean, vision.std))
    tokens = texts(ours.config, generator)
    pairs = (
        (ours.encode_image(pixels), theirs.encode_image((pixels / 255 - mean) / std)),
        (ours.encode_text(tokens), theirs.encode_text(tokens)),
    )
    for _, other in pairs:
        assert unit(other).diff(dim=0).norm() > 1e-3, "rows that are alike"
    return max(float((mine - unit(other)).abs().max()) for mine, other in pairs)


def texts(config: ClipConfig, generator: torch.Generator) -> Tensor:
    """Ids of two texts with padding behind them."""
    text = config.text
    length = text.context_length
    tokens = torch.randint(5, 999, (2, length), generator=generator)
    end = text.vocab_size - 1 if text.end_token_id is None else text.end_token_id
    tokens[0, length // 2] = tokens[1, length - 2] = end
    pad = 1 if text.trunk is not None and text.trunk.model_type != "mt5" else 0
    tokens[0, length // 2 + 1 :] = tokens[1, length - 1 :] = pad
    return tokens


HEAD = """# Which models are read

Every config of open_clip, by what its towers are. Those that are read are evaluated, embedded,
served, learnt from and fine-tuned. `native` towers are made of our blocks and take every form of
parallelism. A native ResNet and a tower by a library are [trunks](checkpoints.md), which train over
data-parallel ranks; those by a library want `pip install "mmtrain[towers]"`. MetaCLIP and DFN are
weights of ViTs below, SigLIP so400m is ViT-SO400M, PE is PE-Core, EVA-CLIP is EVA01 or EVA02.
Of transformers' models CLIP, SigLIP and SigLIP 2 are read, AltCLIP and ChineseCLIP are not.

A test holds features of images and texts against open_clip's, of random weights and few layers, to
1e-5, and this table against what is read.

| config | image tower | text tower | image size | |
|---|---|---|---|---|
"""


def table() -> str:
    """The page that says which configs are read."""
    rows = []
    for name in NAMES:
        try:
            with shallow_timm():
                config = config_from_open_clip(published(name))
        except UsageError as error:
            why = str(error).rpartition(": ")[2]
            rows.append(f"| {name} | | | | refused: {why} |")
            continue
        towers = [_told(tower.trunk) for tower in (config.vision, config.text)]
        size = config.vision.image_size
        rows.append(f"| {name} | {' | '.join(towers)} | {size} | evaluates, trains |")
    return HEAD + "\n".join(rows) + "\n"


def _told(trunk: Any) -> str:
    if trunk is None:
        return "native"
    return "native ResNet" if trunk.kind == "resnet" else f"{trunk.kind}: {trunk.name}"


if __name__ == "__main__":
    print(table(), end="")
