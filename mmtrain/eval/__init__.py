"""Evaluation of a whole model, alone or over all ranks, with the same result to the last sample."""

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
