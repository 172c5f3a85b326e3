"""Transforms of torch.func, which an autograd function of our own has no rule for."""

import torch


def is_transformed() -> bool:
    """Whether one of them (grad, vmap, jvp and the like) goes over what is computed now."""
    if torch.compiler.is_compiling():  # which has rules of its own, and cannot read on
        return False
    stack = torch._C._functorch.peek_interpreter_stack()  # pyright: ignore[reportAttributeAccessIssue]
    return stack is not None
