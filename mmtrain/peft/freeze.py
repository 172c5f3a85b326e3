"""What trains beside an adapter, and how much that is."""

from collections.abc import Collection
from fnmatch import fnmatchcase

from torch import nn

from mmtrain.peft.lora import TERMS


def freeze_all_but(
    model: nn.Module,
    *,
    learned: str | None,
    also_train: tuple[str, ...],
    rests: Collection[str] | None = None,
) -> None:
    """Let an adapter train and nothing else, in place.

    Args:
        model: has its adapter.
        learned: the start of the names of an adapter's parameters; None: those of LoRA's terms.
        also_train: patterns of other parameters that train in full.
        rests: parameters that never train, whatever names them. None: those that do not now.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen = {name for name in names if name.rpartition(".")[2] in TERMS}
    if learned is not None:
        chosen = {name for name in names if name.startswith(learned)}
        assert chosen, f"no parameter starts with {learned}"
    for pattern in also_train:
        matching = {name for name in names if fnmatchcase(name, pattern)}
        if not matching:
            parts = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
            raise ValueError(
                f'also_train = "{pattern}" matches no parameter; their names start with {parts}'
            )
        chosen |= matching
    rests = resting(model) if rests is None else rests
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen and name not in rests)


def resting(model: nn.Module) -> set[str]:
    """Parameters that do not train, such as the statistics of batch norms."""
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Parameters that train, and all of them."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)
