"""Which adapter a run trains beside the frozen model."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from mmtrain.limits import check_choices, idle_line
from mmtrain.peft.lora_config import LoraConfig
from mmtrain.peft.prompts import PromptConfig

PeftKind = Literal["lora", "prompt", "p_tuning", "prefix", "context"]
_LORA = ("rank", "alpha", "rslora", "dora", "dropout", "targets", "rank_pattern", "alpha_pattern")
_FIELDS: dict[PeftKind, tuple[str, ...]] = {
    "lora": _LORA,
    "prompt": ("num_tokens",),
    "p_tuning": ("num_tokens", "network", "hidden_dim"),
    "prefix": ("num_tokens", "network", "hidden_dim"),
    "context": ("num_tokens",),
}
"""The settings that each kind reads."""


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """A small adapter trains; the model that it stands on stays as it was."""

    kind: PeftKind
    """lora: low-rank terms beside linear layers. prompt, p_tuning, prefix (P-tuning v2): learned
    tokens before the text of a decoder that answers. context (CoOp, arXiv:2109.01134): learned
    tokens before every text of a text tower."""
    rank: int | None = None
    """lora: rank of the terms. None: 8."""
    alpha: float | None = None
    """lora: a term counts alpha / rank. None: 16."""
    rslora: bool | None = None
    """lora: a term counts alpha / sqrt(rank) (arXiv:2312.03732). None: false."""
    dora: bool | None = None
    """lora: train the length of a weight's rows too (DoRA, arXiv:2402.09353). None: false."""
    dropout: float | None = None
    """lora: share of a layer's input features that its term does not see, drawn anew for each
    sample and epoch, for all tokens alike; front doors have none. None: 0."""
    targets: tuple[str, ...] | None = None
    """lora: names of linear layers, with * for any part: "text.*.feed_forward.*". None: queries
    and values of all attention."""
    rank_pattern: dict[str, int] | None = None
    """lora: another rank for some of the targets, by patterns like theirs, of which the first that
    fits counts: {"vision.*" = 4}. None: all have `rank`."""
    alpha_pattern: dict[str, float] | None = None
    """lora: another alpha, likewise; a layer's term counts its alpha / its rank. None: all have
    `alpha`."""
    num_tokens: int | None = None
    """Learned tokens. None: 20; for context 16."""
    network: Literal["mlp", "lstm"] | None = None
    """What learned tokens pass while they train: p_tuning mlp or lstm (None: mlp), prefix mlp or
    none. Exports hold what it gave."""
    hidden_dim: int | None = None
    """Width of that network. None: 128."""
    also_train: tuple[str, ...] = ()
    """Parameters that train in full beside the adapter, with * for any part: "classify.*"."""
    init: Annotated[str, "path", "model"] | None = None
    """lora, context: start from this adapter, a folder of ours or of peft's."""

    def __post_init__(self) -> None:
        check_choices(self)
        self._refuse_idle()
        if self.hidden_dim is not None and self.kind == "prefix" and self.network is None:
            raise ValueError('hidden_dim has no effect without network = "mlp"; leave it out')
        if self.init is not None and self.kind not in ("lora", "context"):
            # peft's files hold what the network gave, not the network.
            raise ValueError(f'init is not for kind = "{self.kind}"; start from vqa.init instead')
        if self.kind == "lora":
            assert self.lora
        else:
            assert self.prompt

    def _refuse_idle(self) -> None:
        """All of them at once: of a recipe of another kind, several are there."""
        read = _FIELDS[self.kind]
        known = dict.fromkeys(name for names in _FIELDS.values() for name in names)
        idle = [name for name in self._given(tuple(known)) if name not in read]
        if idle:
            raise ValueError(idle_line(idle, f'with kind = "{self.kind}"'))

    def _given(self, names: tuple[str, ...]) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def lora(self) -> LoraConfig:
        """The terms' config; for kind = "lora"."""
        return LoraConfig(**self._given(_LORA))

    @property
    def prompt(self) -> PromptConfig:
        """The learned tokens' config; for all other kinds."""
        if self.kind in ("lora", "context"):
            return PromptConfig(num_tokens=16 if self.num_tokens is None else self.num_tokens)
        config = PromptConfig(
            kind=self.kind,
            network=self.network or ("mlp" if self.kind == "p_tuning" else None),
            **self._given(("num_tokens",)),
        )
        return replace(config, **self._given(("hidden_dim",)))
