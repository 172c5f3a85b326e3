"""open_clip's towers that are not made of our blocks: their fields and their tensors, both ways."""

from typing import Any

import torch

from mmtrain.interop.foreign_config import ForeignConfig
from mmtrain.interop.tensor_links import Link, Tensors, same, same_layer
from mmtrain.models import VisionConfig, VisionTower
from mmtrain.models.trunks.config import ResNetTrunk, TimmTrunk, no_blocks
from mmtrain.models.vision_config import TRUNK_VISION, resnet_vision

COUNTER = "num_batches_tracked"
"""What batch norms count, which nothing reads; ours have none."""


def resnet_from_cfg(cfg: ForeignConfig) -> VisionConfig:
    """The tower of a vision_cfg whose `layers` are four; its activation is ReLU, whatever
    quick_gelu says.

    Raises:
        UsageError: a field that we cannot compute.
    """
    cfg.ignore("patch_size", "mlp_ratio", "ls_init_value", "patch_dropout", "pool_type")
    cfg.ignore("attentional_pool", "attn_pooler_queries", "attn_pooler_heads", "output_tokens")
    width, head_width = cfg.take("width", int, 768), cfg.take("head_width", int, 64)
    trunk = ResNetTrunk(
        layers=tuple(cfg.take("layers", list)), width=width, num_heads=32 * width // head_width
    )
    return resnet_vision(trunk, image_size=cfg.take_side("image_size", 224))


def timm_trunk_from_cfg(cfg: ForeignConfig, *, embed_dim: int) -> VisionConfig:
    """The tower of a vision_cfg whose timm_model_name is none of our own towers'.

    What drops something in training is left out: a trunk drops nothing.

    Raises:
        UsageError: a field that is not read.
        ValueError: timm is not here, or has no such model.
    """
    cfg.ignore("layers", "width", "head_width", "mlp_ratio", "patch_size", "timm_model_pretrained")
    cfg.ignore("timm_drop", "timm_drop_path", "patch_dropout")
    # Missing means linear; null and the empty text mean timm's own classifier.
    head = cfg.only_even_null("timm_proj", "linear", None, "", "none", "mlp") or "own"
    bias = cfg.only("timm_proj_bias", False, True)
    trunk = TimmTrunk(
        name=cfg.take("timm_model_name", str),
        pool=cfg.only("timm_pool", "avg", "", "token", "map", "max", "avgmax"),
        head=head,
        head_bias=bias and head == "mlp",
    )
    from mmtrain.models.trunks.timm_network import timm_features  # it is there, as the trunk says

    image_size = cfg.take_side("image_size", 224)
    features = timm_features(trunk, image_size=image_size, dim=embed_dim)
    return VisionConfig(
        trunk=trunk,
        transformer=no_blocks(features if head == "linear" else embed_dim),
        image_size=image_size,
        projection=head == "linear",
        projection_bias=bias and head == "linear",
        **TRUNK_VISION,  # pyright: ignore[reportArgumentType]
    )


def _timm_to_cfg(vision: VisionConfig, trunk: TimmTrunk) -> dict[str, Any]:
    cfg: dict[str, Any] = {
        "image_size": vision.image_size,
        "timm_model_name": trunk.name,
        "timm_model_pretrained": False,
        "timm_pool": trunk.pool,
        "timm_proj": None if trunk.head == "own" else trunk.head,
    }
    if trunk.head_bias or vision.projection_bias:
        cfg["timm_proj_bias"] = True
    return cfg


def trunk_to_cfg(vision: VisionConfig) -> dict[str, Any]:
    """The vision_cfg of a tower with a trunk."""
    trunk = vision.trunk
    assert trunk is not None, "only towers with a trunk come here"
    if isinstance(trunk, TimmTrunk):
        return _timm_to_cfg(vision, trunk)
    cfg: dict[str, Any] = {
        "image_size": vision.image_size,
        "layers": list(trunk.layers),
        "width": trunk.width,
        "head_width": trunk.dim // trunk.num_heads,
        "patch_size": None,
    }
    return cfg


def trunk_links(vision: VisionConfig) -> list[Link]:
    """All tensors of such a tower."""
    with torch.device("meta"):
        names = VisionTower(vision, embed_dim=vision.transformer.dim).state_dict()
    trunk = "embed.trunk."
    is_resnet = isinstance(vision.trunk, ResNetTrunk)
    projection = same_layer(
        "vision.head.projection",
        "visual.attnpool.c_proj" if is_resnet else "visual.head.proj",
        bias=vision.projection_bias,
    )
    return [
        *(
            same(f"vision.{name}", f"visual.{name.removeprefix(trunk)}")
            for name in names
            if name.startswith(trunk)
        ),
        *(projection if vision.projection else []),
    ]


def without_counters(tensors: Tensors) -> Tensors:
    """Theirs without what batch norms count."""
    return {name: x for name, x in tensors.items() if not name.endswith(f".{COUNTER}")}


def with_counters(tensors: Tensors) -> Tensors:
    """Theirs with a count of zero beside every batch norm's statistics."""
    names = [name.rpartition(".")[0] for name in tensors if name.endswith(".running_mean")]
    return tensors | {f"{name}.{COUNTER}": torch.zeros((), dtype=torch.int64) for name in names}
