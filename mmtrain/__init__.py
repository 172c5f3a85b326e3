"""mmtrain: train, evaluate and load CLIP models.

`model, preprocess, tokenizer = mmtrain.load(PATH)` is all that using a model takes. The names are
bound on first use, so that `import mmtrain` (and the command line's help) does not wait for torch.
"""

from typing import TYPE_CHECKING

from mmtrain.first_use import bound_on_first_use

if TYPE_CHECKING:
    from mmtrain.errors import UsageError
    from mmtrain.loading import load, load_decoder, save_model
else:
    __getattr__, __dir__ = bound_on_first_use(
        __name__,
        {
            "UsageError": "mmtrain.errors",
            "load": "mmtrain.loading",
            "load_decoder": "mmtrain.loading",
            "save_model": "mmtrain.loading",
        },
    )

__version__ = "0.1.0"

__all__ = [
    "UsageError",
    "__version__",
    "load",
    "load_decoder",
    "save_model",
]
