"""Data of every form, read by number through one order.

`mmtrain.data.open_loader` gives all of it to other trainers. The names are bound on first use, as
those of `mmtrain` are.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtrain.data.loader import Loader, open_loader
    from mmtrain.data.sample_error import SampleError
    from mmtrain.data.stream import Stream, open_stream

__all__ = ["Loader", "SampleError", "Stream", "open_loader", "open_stream"]

_PLACES = {
    "Loader": "mmtrain.data.loader",
    "SampleError": "mmtrain.data.sample_error",
    "Stream": "mmtrain.data.stream",
    "open_loader": "mmtrain.data.loader",
    "open_stream": "mmtrain.data.stream",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'mmtrain.data' has no attribute '{name}'")
