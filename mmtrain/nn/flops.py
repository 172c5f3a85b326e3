"""Floating-point operations of products, counted as they are called."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

_ON_A_CPU = "_scaled_dot_product_flash_attention_for_cpu"


class FlopCount(TorchDispatchMode):
    """Within the context, products and attention by torch's own formulas, those of a backward too;
    compiled code is not seen. torch's FlopCounterMode also follows modules, by hooks that a
    pipeline's backward does not bear, and leaves out the CPU's fused attention.

    >>> with FlopCount() as count:
    ...     torch.ones(2, 3) @ torch.ones(3, 5)
    >>> count.total
    60
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        """A multiplication and an addition count as two."""
        self.gradients = 0
        """What of it a backward computes of gradients."""
        self.again = 0
        """What of it a backward runs again of a forward (recompute)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        if packet in flop_registry:
            self._add(flop_registry[packet](*args, **kwargs, out_val=out))
        elif packet.__name__ == _ON_A_CPU:
            self._add(sdpa_flop_count(*(x.shape for x in args[:3])))
        elif packet.__name__ == f"{_ON_A_CPU}_backward":
            # Scores again, and a product for each of the four gradients: 5 of the forward's 2.
            self._add(5 * sdpa_flop_count(*(x.shape for x in args[1:4])) // 2)
        return out

    def _add(self, flops: int) -> None:
        self.total += flops
        if torch._C._current_graph_task_id() == -1:  # no backward is under way
            return
        # What checkpoint runs again has a graph; a backward of its own has none.
        if torch.is_grad_enabled():
            self.again += flops
        else:
            self.gradients += flops
