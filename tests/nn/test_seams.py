"""Layers around a forward: one order whatever the calls', no layer twice, no other way in."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from torch import nn

import mmtrain
from mmtrain.nn.seams import ORDER, Forward, Layer, layers_around, wrap_forward


class Telling(nn.Module):
    def forward(self, told: list[str]) -> list[str]:
        return [*told, "forward"]


def telling(name: str) -> Callable[[Forward], Forward]:
    return lambda forward: lambda told: [*forward([*told, name]), name]


@pytest.mark.parametrize("layers", list(itertools.permutations(ORDER[2:5])))
def test_the_order_is_the_stated_one_whatever_comes_first(layers: tuple[Layer, ...]) -> None:
    module = Telling()
    for layer in (*layers, "edges", "local parameters"):
        wrap_forward(module, layer, telling(layer))
    names = ["local parameters", *ORDER[2:5], "edges"]
    assert layers_around(module) == tuple(names)
    assert module([]) == [*reversed(names), "forward", *names]
    assert not module.state_dict() and layers_around(Telling()) == ()


def test_mistakes_are_refused() -> None:
    module = Telling()
    wrap_forward(module, "ranks", telling("ranks"))
    with pytest.raises(ValueError, match="has a layer 'ranks' already"):
        wrap_forward(module, "ranks", telling("ranks"))
    with pytest.raises(ValueError, match="layer = 'rank' is unknown; use one of local parameters"):
        wrap_forward(module, cast(Any, "rank"), telling("rank"))
    assert module([]) == ["ranks", "forward", "ranks"]
    replaced = Telling()
    replaced.forward = lambda told: told
    with pytest.raises(ValueError, match="Telling's forward was replaced"):
        wrap_forward(replaced, "ranks", telling("ranks"))


@pytest.mark.parametrize("layer", ORDER)
def test_a_copy_never_computes_with_the_weights_of_the_first(layer: Layer) -> None:
    """Whatever holds the wrapped module, too; before the layer a copy is one of its own."""
    whole = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    free = copy.deepcopy(whole)
    wrap_forward(whole[1], layer, lambda forward: lambda x: forward(x))
    with pytest.raises(ValueError, match=rf"forward has layers \({layer}\) cannot be copied"):
        copy.deepcopy(whole)
    wrap_forward(free[1], layer, lambda forward: lambda x: forward(x))
    assert whole.state_dict().keys() == free.state_dict().keys()


def test_nothing_else_replaces_a_forward() -> None:
    """Found by its form: an assignment to an attribute `forward`, or one by setattr."""
    package = Path(mmtrain.__file__).parent
    for file in package.rglob("*.py"):
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            place = f"{file.relative_to(package)}:{number}"
            assert ".forward = " not in line and "setattr(" + '"forward"' not in line, place
