"""The operations of an autograd graph, and blocks that are alike folded into one of them."""

import itertools
from collections import defaultdict
from dataclasses import dataclass, field, replace


@dataclass(kw_only=True)
class Operation:
    """A node of autograd's graph."""

    name: str
    """As torch calls it, without `Backward`."""
    module: str
    """Dotted name of the innermost module that it comes from; empty outside of all."""
    weights: list[str] = field(default_factory=list)
    """The parameters that it reads, with their shapes."""
    inputs: list[int] = field(default_factory=list)
    """Numbers of the operations whose outputs it reads."""


Operations = dict[int, Operation]
"""By numbers that rise from input to output."""


def fold_repeats(operations: Operations) -> tuple[Operations, dict[str, str]]:
    """Of blocks that follow each other and are alike the first one alone; what read the last one's
    outputs reads its.

    Args:
        operations: of a whole graph.

    Returns:
        The operations that are left under their numbers, and by the module of each first block what
        it stands for, such as `0 to 11, 12 alike`.
    """
    stacks: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for number, one in operations.items():
        if block := _block(one.module):
            stacks[block.rpartition(".")[0]][block].append(number)
    stands_for: dict[int, int] = {}
    told: dict[str, str] = {}
    for blocks in stacks.values():
        ordered = sorted(blocks, key=lambda block: int(block.rpartition(".")[2]))
        shapes = {block: _shape(operations, block, numbers) for block, numbers in blocks.items()}
        for _, run in itertools.groupby(ordered, shapes.__getitem__):
            first, *others = run
            if not others:
                continue
            names = [block.rpartition(".")[2] for block in (first, others[-1])]
            told[first] = f"{' to '.join(names)}, {len(others) + 1} alike"
            for other in others:
                stands_for |= dict(zip(blocks[other], blocks[first], strict=True))
    return {
        number: replace(one, inputs=[stands_for.get(source, source) for source in one.inputs])
        for number, one in operations.items()
        if number not in stands_for
    }, told


def _block(module: str) -> str:
    """The outermost module around it that is one of a numbered stack; empty: it is in none."""
    names = module.split(".")
    place = next((place for place, name in enumerate(names) if name.isdigit()), None)
    return "" if place is None else ".".join(names[: place + 1])


def _shape(operations: Operations, block: str, numbers: list[int]) -> list[object]:
    """What makes two blocks alike: their operations, and what these read inside of the block."""
    place = {number: place for place, number in enumerate(numbers)}
    return [
        (one.name, one.module.removeprefix(block), one.weights, [*map(place.get, one.inputs)])
        for one in (operations[number] for number in numbers)
    ]
