"""Floating-point operations of products, counted as they are called."""

from typing import Any

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

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        if packet in flop_registry:
            self.total += flop_registry[packet](*args, **kwargs, out_val=out)
        elif packet.__name__ == _ON_A_CPU:
            self.total += sdpa_flop_count(*(x.shape for x in args[:3]))
        elif packet.__name__ == f"{_ON_A_CPU}_backward":
            # Scores again, and a product for each of the four gradients: 5 of the forward's 2.
            self.total += 5 * sdpa_flop_count(*(x.shape for x in args[1:4])) // 2
        return out
