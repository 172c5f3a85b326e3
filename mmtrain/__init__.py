"""mmtrain: train, evaluate and load CLIP models.

`model, preprocess, tokenizer = mmtrain.load(PATH)` is all that using a model takes. The name is
bound on first use, so that `import mmtrain` (and the command line's help) does not wait for torch.
Its code is in `mmtrain/loading/models.py`: a module of the function's own name would replace the
function as soon as anybody imported it.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtrain.loading import load, load_decoder, save_model

__version__ = "0.1.0"

__all__ = ["__version__", "load", "load_decoder", "save_model"]


def __getattr__(name: str) -> Any:
    if name in ("load", "load_decoder", "save_model"):
        return getattr(importlib.import_module("mmtrain.loading"), name)
    raise AttributeError(f"module 'mmtrain' has no attribute '{name}'")
