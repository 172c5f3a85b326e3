"""Evaluation of a whole model, alone or over all ranks, with the same result to the last sample.

The names are bound on first use, so that a file of answers is judged without waiting for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmtrain.eval.classify.knn import evaluate_knn
    from mmtrain.eval.classify.linear_probe import evaluate_linear_probe
    from mmtrain.eval.classify.zero_shot import evaluate_zero_shot
    from mmtrain.eval.encode import Encoder, Towers
    from mmtrain.eval.result import EvalResult, write_result
    from mmtrain.eval.retrieval import evaluate_retrieval

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
    "evaluate_knn": "classify.knn",
    "evaluate_linear_probe": "classify.linear_probe",
    "EvalResult": "result",
    "write_result": "result",
    "evaluate_retrieval": "retrieval",
    "evaluate_zero_shot": "classify.zero_shot",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"mmtrain.eval.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'mmtrain.eval' has no attribute '{name}'")
