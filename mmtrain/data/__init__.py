"""Data of every form, read by number through one order.

`mmtrain.data.open_loader` gives all of it to other trainers. The names are bound on first use, as
those of `mmtrain` are.
"""

from typing import TYPE_CHECKING

from mmtrain.first_use import bound_on_first_use

if TYPE_CHECKING:
    from mmtrain.data.batch import ImageTextBatch
    from mmtrain.data.images.transforms import PreprocessConfig
    from mmtrain.data.loader import Loader, open_loader
    from mmtrain.data.sample_error import SampleError
    from mmtrain.data.stream import Stream, open_stream
    from mmtrain.data.text.tokenizer import Tokenizer, TokenizerConfig, build_tokenizer
else:
    __getattr__, __dir__ = bound_on_first_use(
        __name__,
        {
            "ImageTextBatch": "mmtrain.data.batch",
            "Loader": "mmtrain.data.loader",
            "PreprocessConfig": "mmtrain.data.images.transforms",
            "SampleError": "mmtrain.data.sample_error",
            "Stream": "mmtrain.data.stream",
            "Tokenizer": "mmtrain.data.text.tokenizer",
            "TokenizerConfig": "mmtrain.data.text.tokenizer",
            "build_tokenizer": "mmtrain.data.text.tokenizer",
            "open_loader": "mmtrain.data.loader",
            "open_stream": "mmtrain.data.stream",
        },
    )

__all__ = [
    "ImageTextBatch",
    "Loader",
    "PreprocessConfig",
    "SampleError",
    "Stream",
    "Tokenizer",
    "TokenizerConfig",
    "build_tokenizer",
    "open_loader",
    "open_stream",
]
