"""Visual question answering put together: runs, saved models, questions to them."""

from mmtrain.vqa.build import VqaRun, build_vqa_run, check_vqa_evaluation
from mmtrain.vqa.saved import VqaModel, is_vqa_folder, load_vqa, save_vqa

__all__ = [
    "VqaModel",
    "VqaRun",
    "build_vqa_run",
    "check_vqa_evaluation",
    "is_vqa_folder",
    "load_vqa",
    "save_vqa",
]
