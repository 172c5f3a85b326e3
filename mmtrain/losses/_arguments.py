"""What a loss is given, checked by the process that is given it."""

import torch
from torch import Tensor


def as_scalar(value: Tensor | float, *, name: str, like: Tensor) -> Tensor:
    """A 0-dim tensor beside the features, through which the gradient flows."""
    if not isinstance(value, Tensor):
        return torch.full((), value, dtype=like.dtype, device=like.device)
    if value.numel() != 1:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; give one number")
    return value.reshape(()).to(device=like.device, dtype=like.dtype)


def check_shapes(features: dict[str, Tensor], teacher: dict[str, Tensor]) -> dict[str, int]:
    """What all ranks must have alike; ValueError if this one's do not fit each other."""
    num_rows, dim = _check_features(features)
    shape = {"rows": num_rows, "features": dim}
    if teacher:
        rows, shape["teacher's features"] = _check_features(teacher)
        if rows != num_rows:
            raise ValueError(f"{' and '.join(teacher)} have {rows} rows beside {num_rows}")
    return shape


def _check_features(features: dict[str, Tensor]) -> tuple[int, int]:
    """B and E of features that must have the same; ValueError if these are none."""
    shape = tuple(next(iter(features.values())).shape)
    if len(shape) != 2 or 0 in shape or any(tuple(x.shape) != shape for x in features.values()):
        found = " and ".join(f"{name} {tuple(x.shape)}" for name, x in features.items())
        equal = "equal, " if len(features) > 1 else ""
        raise ValueError(f"{found} must be {equal}2-D and not empty")
    if not all(x.is_floating_point() for x in features.values()):
        found = " and ".join(f"{name} {x.dtype}" for name, x in features.items())
        raise ValueError(f"features are {found}; give floats")
    return shape[0], shape[1]


def check_rows(
    num_rows: int, *, labels_B: Tensor | None, positives: str, valid_B: Tensor | None
) -> None:
    """ValueError for what is said of the rows, if this process alone can see it to be wrong."""
    if positives not in ("attract", "ignore"):
        raise ValueError(f'positives = {positives!r} is not known; use "attract" or "ignore"')
    for name, x_B, dtype in (("labels_B", labels_B, torch.int64), ("valid_B", valid_B, torch.bool)):
        if x_B is not None and (x_B.shape != (num_rows,) or x_B.dtype != dtype):
            found = f"{x_B.dtype} {list(x_B.shape)}"
            raise ValueError(f"{name} is {found}; give {dtype} [{num_rows}], one per row")
