"""Evaluation of a whole model: zero-shot classification and retrieval, alone or over all ranks."""

from mmtrain.eval.encode import Encoder, Towers
from mmtrain.eval.result import EvalResult, write_result
from mmtrain.eval.retrieval import evaluate_retrieval
from mmtrain.eval.zero_shot import evaluate_zero_shot

__all__ = [
    "Encoder",
    "EvalResult",
    "Towers",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "write_result",
]
