"""The `optim` section of a recipe."""

from dataclasses import dataclass, fields
from typing import Literal

from mmtrain.limits import check_choices, idle_line


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, learning-rate schedule, clipping and weight averaging.

    The defaults are open_clip's for a ViT. Published runs use beta2 = 0.95 from ViT-L upwards.

    Raises:
        ValueError: a value is out of range, or a setting would have no effect.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw for everything; muon for the hidden matrices of the blocks with AdamW for the rest."""
    lr: float = 5e-4
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the two moments."""
    eps: float = 1e-6
    """AdamW's term in the denominator."""
    weight_decay: float = 0.2
    """AdamW's decoupled decay; vectors, scalars, positions and learned tokens are spared."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; None: never clipped."""
    layer_decay: float = 1.0
    """Learning rate multiplied by this for every layer away from the output (arXiv:2106.08254)."""
    muon_lr: float = 2e-2
    """Peak learning rate of Muon."""
    muon_momentum: float = 0.95
    """Muon's (Nesterov) momentum."""
    muon_weight_decay: float = 0.0
    """Muon's decoupled decay, in units of muon_lr."""
    muon_adjust: Literal["original", "match_rms_adamw"] = "original"
    """Muon's step by shape [out, in]: sqrt(max(1, out / in)); or 0.2 * sqrt(max(out, in)), for
    which AdamW's learning rate and decay carry over (arXiv:2502.16982)."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """After the warm-up: half a cosine; constant; constant with a linear decay at the end (wsd)."""
    warmup_steps: int | None = None
    """Steps of linear warm-up. None: warmup_fraction of the run, or 10 % where that is None too."""
    warmup_fraction: float | None = None
    """Share of the run spent in linear warm-up; excludes warmup_steps."""
    decay_fraction: float = 0.2
    """wsd: share of the run spent in the final linear decay."""
    min_lr_fraction: float = 0.0
    """cosine, wsd: where the decay ends, as a share of the peak."""
    ema_decay: float | None = None
    """Decay of the averaged weights that are evaluated and exported; None: no averaging."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("lr", "eps", "muon_lr"):
            self._check(name, getattr(self, name) > 0, "must be positive")
        for name in ("weight_decay", "muon_weight_decay"):
            self._check(name, getattr(self, name) >= 0, "must not be negative")
        for name in ("muon_momentum", "min_lr_fraction"):
            self._check(name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        self._check("betas", all(0 <= b < 1 for b in self.betas), "must both be in [0, 1)")
        self._check("clip_norm", self.clip_norm is None or self.clip_norm > 0, "must be positive")
        self._check("layer_decay", 0 < self.layer_decay <= 1, "must be in (0, 1]")
        self._check("warmup_steps", (self.warmup_steps or 0) >= 0, "must not be negative")
        self._check("warmup_fraction", 0 <= (self.warmup_fraction or 0) <= 1, "must be in [0, 1]")
        self._check("decay_fraction", 0 < self.decay_fraction <= 1, "must be in (0, 1]")
        decay_ok = self.ema_decay is None or 0 < self.ema_decay < 1
        self._check("ema_decay", decay_ok, "must be in (0, 1), for example 0.999")
        self._check_effect()

    def _check_effect(self) -> None:
        """Refuse settings that the chosen variants would ignore."""
        both = self.warmup_steps is not None and self.warmup_fraction is not None
        self._check("warmup_steps", not both, "excludes warmup_fraction; keep one of them")
        set_here = [one.name for one in fields(self) if getattr(self, one.name) != one.default]
        for start, is_read, remedy in (
            ("muon_", self.kind == "muon", 'set kind = "muon" or remove {it}'),
            ("decay_fraction", self.schedule == "wsd", 'set schedule = "wsd" or remove {it}'),
            (
                "min_lr_fraction",
                self.schedule != "constant",
                "choose another schedule or remove {it}",
            ),
        ):
            found = [name for name in set_here if name.startswith(start)]
            if found and not is_read:
                shown = [f"{name} = {getattr(self, name)}" for name in found]
                raise ValueError(idle_line(shown, remedy=remedy))

    def _check(self, name: str, holds: bool, complaint: str) -> None:
        if not holds:
            raise ValueError(f"{name} = {getattr(self, name)} {complaint}")
