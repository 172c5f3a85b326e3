"""open_clip's image towers that are timm's: the `timm_*` fields of vision_cfg and the tensors."""

from dataclasses import replace
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.interop.canonical import canonical_vision
from mmtrain.interop.foreign_config import ForeignConfig
from mmtrain.interop.tensor_links import Link, same_layer
from mmtrain.interop.timm import POOLS, timm_links, vision_config_from_timm
from mmtrain.interop.timm_names import TIMM_NAMES, timm_args
from mmtrain.models import VisionConfig

PROJECTIONS = {"none": (False, False), "linear": (True, False), "": (True, True)}
"""timm_proj: whether there is a projection, and whether it has a bias. The empty one is timm's own
classifier."""


def is_timm_tower(vision: VisionConfig) -> bool:
    """Whether open_clip can have the tower from timm alone."""
    if vision.trunk is not None:
        return False
    native = vision.class_token and vision.projection and not vision.projection_bias
    plain = not vision.patch_bias and vision.num_registers == 0 and vision.pool != "attention"
    return not (native and plain)


def vision_from_cfg(cfg: ForeignConfig) -> VisionConfig:
    """The tower of a vision_cfg with a timm_model_name; open_clip ignores widths and layers then.

    Raises:
        UsageError: a field that we cannot compute.
    """
    name = cfg.take("timm_model_name", str)
    args = timm_args(name, source=cfg.source)
    cfg.ignore("layers", "width", "head_width", "mlp_ratio", "patch_size", "timm_model_pretrained")
    cfg.only("timm_drop", 0.0)
    cfg.only("timm_proj_bias", False)
    # Missing means linear; null and the empty text mean timm's own classifier.
    proj = cfg.only_even_null("timm_proj", "linear", None, "", "none") or ""
    pool = cfg.only("timm_pool", "avg", "", *POOLS)
    args = _with_pool(args, pool=pool, rebuilt=proj == "linear", cfg=cfg)
    cfg.only("image_size", args["img_size"])
    args["drop_path_rate"] = cfg.take("timm_drop_path", float, 0.0)
    args["patch_drop_rate"] = cfg.take("patch_dropout", float, 0.0)
    projection, bias = PROJECTIONS[proj]
    config = vision_config_from_timm(args, source=cfg.source)
    return replace(config, projection=projection, projection_bias=bias)


def _with_pool(
    args: dict[str, Any], *, pool: str, rebuilt: bool, cfg: ForeignConfig
) -> dict[str, Any]:
    """The arguments with open_clip's timm_pool.

    Beside a linear projection open_clip builds the tower with timm's own pool and exchanges that
    afterwards, which leaves the final norm where timm's own pool wants it.
    """
    own = args.get("global_pool", "token")
    if not pool and not rebuilt:
        raise UsageError(f'{cfg.source}: timm_pool = "" without timm_proj is not supported')
    pool = pool or own
    if not rebuilt:
        return args | {"global_pool": pool}
    if pool == "map" != own:
        raise UsageError(f'{cfg.source}: timm_pool = "map" needs a tower that has one')
    norm_after = args.get("fc_norm", own == "avg")
    return args | {"global_pool": pool, "fc_norm": norm_after and pool != "token"}


def vision_to_cfg(vision: VisionConfig) -> dict[str, Any] | None:
    """The vision_cfg of a tower that is one of timm's; None where timm has no name for it."""
    want = canonical_vision(vision)
    for name in TIMM_NAMES:
        if timm_args(name)["img_size"] != vision.image_size:
            continue
        cfg: dict[str, Any] = {
            "image_size": vision.image_size,
            "timm_model_name": name,
            "timm_model_pretrained": False,
            "timm_pool": {ours: theirs for theirs, ours in POOLS.items()}[vision.pool],
            "timm_proj": None if vision.projection_bias else "linear",
        }
        if not vision.projection:
            cfg["timm_proj"] = "none"
        try:
            read = vision_from_cfg(ForeignConfig(cfg, source="timm"))
        except UsageError:
            continue
        if canonical_vision(read, pixels_of=vision) == want:
            return cfg | {"patch_dropout": vision.patch_dropout} if vision.patch_dropout else cfg
    return None


def tower_links(vision: VisionConfig) -> list[Link]:
    """All tensors of the tower."""
    links = timm_links(vision, ours="vision.", theirs="visual.trunk.")
    if vision.projection:
        theirs = "visual.trunk.head" if vision.projection_bias else "visual.head.proj"
        links += same_layer("vision.head.projection", theirs, bias=vision.projection_bias)
    return links
