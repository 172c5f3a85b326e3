"""open_clip's towers that are not made of our blocks: their fields and their tensors, both ways."""

from typing import Any

import torch

from mmtrain.interop.foreign_config import ForeignConfig
from mmtrain.interop.tensor_links import Link, Tensors, same, same_layer
from mmtrain.models import VisionConfig, VisionTower
from mmtrain.models.trunks.config import ResNetTrunk
from mmtrain.models.vision_config import resnet_vision

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


def trunk_to_cfg(vision: VisionConfig) -> dict[str, Any]:
    """The vision_cfg of a tower with a trunk."""
    trunk = vision.trunk
    assert trunk is not None, "only towers with a trunk come here"
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
    return [
        *(
            same(f"vision.{name}", f"visual.{name.removeprefix(trunk)}")
            for name in names
            if name.startswith(trunk)
        ),
        *same_layer("vision.head.projection", "visual.attnpool.c_proj"),
    ]


def without_counters(tensors: Tensors) -> Tensors:
    """Theirs without what batch norms count."""
    return {name: x for name, x in tensors.items() if not name.endswith(f".{COUNTER}")}


def with_counters(tensors: Tensors) -> Tensors:
    """Theirs with a count of zero beside every batch norm's statistics."""
    names = [name.rpartition(".")[0] for name in tensors if name.endswith(".running_mean")]
    return tensors | {f"{name}.{COUNTER}": torch.zeros((), dtype=torch.int64) for name in names}
