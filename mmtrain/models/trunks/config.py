"""Which trunk a tower has, plain data."""

import json
from dataclasses import MISSING, dataclass, fields
from importlib.util import find_spec
from typing import Any, Literal

from mmtrain.limits import MOST_LAYERS, check_counts, idle_line
from mmtrain.nn import TransformerConfig


@dataclass(frozen=True, kw_only=True)
class ResNetTrunk:
    """The ResNet of CLIP: three convolutions first, pooling before every stride, and attention
    pooling last. Radford et al. 2021, arXiv:2103.00020, section 2.4."""

    kind: Literal["resnet"] = "resnet"
    """Tells this table from the other trunks'."""
    layers: tuple[int, ...]
    """Blocks of each of the four stages."""
    width: int = 64
    """Channels of the first stage; the features have 32 times as many."""
    num_heads: int = 32
    """Heads of the attention pooling."""

    def __post_init__(self) -> None:
        check_counts(self, "width", "num_heads")
        if len(self.layers) != 4 or not all(1 <= n <= MOST_LAYERS for n in self.layers):
            raise ValueError(f"layers = {list(self.layers)} must be four counts of at least 1")
        if self.width % 2 or self.dim % self.num_heads:
            raise ValueError(
                f"width = {self.width} must be even, and num_heads = {self.num_heads} divide 32 of "
                "it"
            )

    @property
    def title(self) -> str:
        """What it is, for people."""
        return f"ResNet of {'-'.join(map(str, self.layers))} blocks, width {self.width}"

    @property
    def dim(self) -> int:
        """Features of the pooled image."""
        return 32 * self.width


@dataclass(frozen=True, kw_only=True)
class TimmTrunk:
    """A model of timm's by its name there, with the pool and what follows as open_clip joins
    them."""

    kind: Literal["timm"] = "timm"
    """Tells this table from the other trunks'."""
    name: str
    """As timm.create_model has it."""
    pool: str = ""
    """Of timm's; empty: the model's own."""
    head: Literal["linear", "none", "own", "mlp"] = "linear"
    """What maps the pooled features: linear, the tower's projection; nothing; timm's own
    classifier; or two layers."""
    head_bias: bool = False
    """Bias of the second of the two layers."""

    def __post_init__(self) -> None:
        check_library("timm", what='trunk.kind = "timm"')
        if self.head_bias and self.head != "mlp":
            raise ValueError('head_bias = true has no effect without head = "mlp"; leave it out')

    @property
    def title(self) -> str:
        """What it is, for people."""
        return f"timm's {self.name}"


ImageTrunkConfig = ResNetTrunk | TimmTrunk
"""Those of images."""


@dataclass(frozen=True, kw_only=True)
class TransformersTrunk:
    """A text encoder of transformers', pooled as open_clip does it."""

    kind: Literal["transformers"] = "transformers"
    """Tells this table from the other trunks'."""
    name: str
    """Its name on the hub, which says what it is to who reads an export; nothing is fetched."""
    model_type: str
    """As in a config.json of theirs."""
    settings: str
    """The rest of that config, as JSON."""
    pool: Literal["mean", "first"] = "mean"
    """The mean of a text's tokens, or its first one."""
    head: Literal["linear", "none", "mlp"] = "linear"
    """What maps the pooled features: linear, the tower's projection; nothing; or two layers."""

    def __post_init__(self) -> None:
        check_library("transformers", what='trunk.kind = "transformers"')


def no_blocks(dim: int) -> TransformerConfig:
    """The blocks of a tower that has a trunk: none."""
    return TransformerConfig(dim=dim, num_layers=0, num_heads=1)


def check_beside_trunk(config: Any, *, free: tuple[str, ...], **fixed: Any) -> None:
    """Refuse fields of a tower's config that its trunk leaves nothing to say.

    Args:
        config: of the tower.
        free: its fields that count beside a trunk.
        fixed: those that have one value then.

    Raises:
        ValueError: naming the others.
    """
    fixed |= {"transformer": no_blocks(config.transformer.dim)}
    idle = []
    for field in fields(config):
        if field.name in free or field.name == "trunk":
            continue
        assert field.default is not MISSING or field.name in fixed
        value, wanted = getattr(config, field.name), fixed.get(field.name, field.default)
        if value != wanted:
            shown = "" if field.name == "transformer" else f" = {json.dumps(value)}"
            idle.append(f"{field.name}{shown}")
    if idle:
        kind = f'on a tower with trunk.kind = "{config.trunk.kind}"'
        raise ValueError(idle_line(idle, f"{kind}, which has no blocks or patches of ours"))


def check_library(package: str, *, what: str) -> None:
    """Refuse a trunk whose library is not here.

    Raises:
        ValueError: saying how to install it.
    """
    if find_spec(package) is None:
        raise ValueError(f'{what} needs the package {package}; pip install "mmtrain[towers]"')
