"""Evaluation of a whole model, alone or over all ranks, with the same result to the last sample.

The names are bound on first use, so that a file of answers is judged without waiting for torch.
"""

from typing import TYPE_CHECKING

from mmtrain.first_use import bound_on_first_use

if TYPE_CHECKING:
    from mmtrain.eval.classify.knn import evaluate_knn
    from mmtrain.eval.classify.linear_probe import evaluate_linear_probe
    from mmtrain.eval.classify.zero_shot import evaluate_zero_shot
    from mmtrain.eval.encode import Encoder, Towers, encode_image_batch, encode_texts
    from mmtrain.eval.result import EvalResult, write_result
    from mmtrain.eval.retrieval import evaluate_retrieval
else:
    __getattr__, __dir__ = bound_on_first_use(
        __name__,
        {
            "Encoder": "mmtrain.eval.encode",
            "EvalResult": "mmtrain.eval.result",
            "Towers": "mmtrain.eval.encode",
            "encode_image_batch": "mmtrain.eval.encode",
            "encode_texts": "mmtrain.eval.encode",
            "evaluate_knn": "mmtrain.eval.classify.knn",
            "evaluate_linear_probe": "mmtrain.eval.classify.linear_probe",
            "evaluate_retrieval": "mmtrain.eval.retrieval",
            "evaluate_zero_shot": "mmtrain.eval.classify.zero_shot",
            "write_result": "mmtrain.eval.result",
        },
    )

__all__ = [
    "Encoder",
    "EvalResult",
    "Towers",
    "encode_image_batch",
    "encode_texts",
    "evaluate_knn",
    "evaluate_linear_probe",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "write_result",
]
