"""Whole models on disk: ours, those of others, and what a run starts from."""

from mmtrain.loading.exporting import export_model, write_package
from mmtrain.loading.models import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Preprocess,
    load,
    load_decoder,
    read_package,
    save_model,
)

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "Preprocess",
    "export_model",
    "load",
    "load_decoder",
    "read_package",
    "save_model",
    "write_package",
]
