"""Evaluation of a whole model, alone or over all ranks, with the same result to the last sample.

The names are bound on first use, so that a file of answers is judged without waiting for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtrain.eval.encode import Encoder, Towers
    from mmtrain.eval.knn import evaluate_knn
    from mmtrain.eval.linear_probe import evaluate_linear_probe
    from mmtrain.eval.result import EvalResult, write_result
    from mmtrain.eval.retrieval import evaluate_retrieval
    from mmtrain.eval.zero_shot import evaluate_zero_shot

__all__ = [
    "Encoder",
    "EvalResult",
    "Towers",
    "evaluate_knn",
    "evaluate_linear_probe",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "write_result",
]

_MODULES = {
    "Encoder": "encode",
    "Towers": "encode",
    "evaluate_knn": "knn",
    "evaluate_linear_probe": "linear_probe",
    "EvalResult": "result",
    "write_result": "result",
    "evaluate_retrieval": "retrieval",
    "evaluate_zero_shot": "zero_shot",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"mmtrain.eval.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'mmtrain.eval' has no attribute '{name}'")
