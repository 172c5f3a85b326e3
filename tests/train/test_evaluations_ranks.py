"""A fault of one of two ranks in an evaluation is everybody's: nobody waits, the run goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from mmtrain.cli import main
from mmtrain.eval import encode as encode_module
from mmtrain.eval import examples as examples_module
from mmtrain.eval import retrieval as retrieval_module
from mmtrain.eval import samples as samples_module
from mmtrain.eval.classify import labelled as labelled_module
from mmtrain.eval.classify import linear_probe as linear_probe_module
from mmtrain.eval.classify.classification import ClassTable, Verdicts
from mmtrain.eval.evaluators import pairs as pairs_module
from mmtrain.eval.evaluators.pairs import PairsConfig
from mmtrain.eval.evaluators.retrieval import RetrievalConfig
from mmtrain.eval.evaluators.vqa import VqaEvalConfig
from mmtrain.eval.questions import answering as answering_module
from mmtrain.eval.questions import result as answers_module
from mmtrain.train import evaluations as evaluations_module
from mmtrain.train.loop import Loop
from mmtrain.train.metrics import read_metrics
from tests.ranks import run_ranks
from tests.tasks.test_vqa_run import write_recipe as write_vqa_recipe
from tests.train.test_evaluations import DATA, KINDS, rows_of, scheduled, steps_in, train

EVERY_KIND: dict[str, dict[str, Any]] = KINDS | {
    "pairs": {"data": DATA, "caption": "txt", "negatives": ["vendor"]}
}
"""`vqa` needs files, and a recipe of its own: see `table_of`."""

PLACES: dict[str, tuple[str, int, Any, str]] = {
    "opens": ("retrieval", 1, RetrievalConfig, "open"),
    "encodes": ("retrieval", 1, samples_module, "encode_image_batch"),
    "encodes a text": ("retrieval", 0, encode_module, "_encode_text_batch"),
    "between collectives": ("retrieval", 1, retrieval_module, "own_blocks"),
    "behind the last one": ("retrieval", 1, retrieval_module, "_recalls"),
    "uses a batch": ("zero_shot", 1, ClassTable, "fill"),
    "between two sums": ("zero_shot", 0, Verdicts, "figures"),
    "judges": ("knn", 1, labelled_module, "own_blocks"),
    "fits a strength": ("linear_probe", 0, linear_probe_module, "_accuracy"),
    "opens pairs": ("pairs", 0, PairsConfig, "open"),
    "encodes an image of a pair": ("pairs", 0, samples_module, "encode_image_batch"),
    "encodes a text of a pair": ("pairs", 1, encode_module, "_encode_text_batch"),
    "scores pairs": ("pairs", 1, pairs_module, "_scores"),
    "draws a pair's picture": ("pairs", 0, examples_module, "thumbnail"),
    "opens questions": ("vqa", 1, VqaEvalConfig, "open"),
    "answers a batch": ("vqa", 1, answering_module, "_answer_batch"),
    "judges answers": ("vqa", 0, answers_module, "vqa_figures"),
    "draws an answer": ("vqa", 0, answers_module, "answer_examples"),
    "writes": ("pairs", 0, evaluations_module, "write_result"),
    "writes answers": ("vqa", 0, evaluations_module, "write_result"),
}
"""What one rank fails at: the evaluation, the rank, what is patched."""


def table_of(kind: str, folder: Path) -> dict[str, Any]:
    """One evaluation of a kind, called `one`."""
    if kind != "vqa":
        return EVERY_KIND[kind] | {"name": "one"}
    files = {part: str(folder / f"vqa/{part}.json") for part in ("questions", "annotations")}
    return {"name": "one", "data": str(folder / "vqa/images"), **files}


def check_ranks(rank: int, folder: str, where: str) -> None:
    """One rank of two has lost the data, or runs out of memory."""
    kind, failing, holder, name = PLACES[where]
    steps = {"done": 0}
    real = getattr(holder, name)

    def count(self: Loop, *args: Any, **options: Any) -> Any:
        verdict = real_step(self, *args, **options)
        steps["done"] = self.state.step
        return verdict

    def fail() -> None:
        if rank == failing and 1 < steps["done"] < 6:
            raise OSError(5, "gone") if name == "open" else RuntimeError("out of memory")

    def do_or_fail(*args: Any, **options: Any) -> Any:
        fail()
        return real(*args, **options)

    real_step = Loop._step
    Loop._step = count  # pyright: ignore[reportAttributeAccessIssue]
    setattr(holder, name, do_or_fail)
    table = table_of(kind, Path(folder))
    if kind == "linear_probe":
        table["strengths"] = [1.0, 0.1]
    words = [*scheduled((kind, table)), "--eval.every", "2", "--eval.fast", "true"]
    words += ["--eval.batch_size", "4" if kind == "vqa" else "16"]  # some for either rank
    run = Path(folder) / where
    # The process group is the test's.
    leave, dist.destroy_process_group = dist.destroy_process_group, lambda *_: None
    try:
        if kind == "vqa":
            recipe = str(Path(folder) / "vqa/recipe.toml")
            assert main(["train", recipe, "--run-dir", str(run), *words]) == 0
        else:
            assert train(run, *words) == 0
    finally:
        dist.destroy_process_group = leave
        setattr(holder, name, real)
        Loop._step = real_step
    dist.barrier()
    assert steps_in(run / "eval/one.history.jsonl") == [6], where
    assert not (run / "eval/one.failed.json").exists()
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    failed = [row for row in rows_of(run / "metrics.jsonl") if "eval_failed" in row]
    assert [(row["step"], row["eval_failed"]) for row in failed] == [(2, "one"), (4, "one")]
    told = "OSError: [Errno 5] gone" if name == "open" else "RuntimeError: out of memory"
    whose = "" if name == "write_result" else f"rank {failing}: "  # none but rank 0 writes
    assert all(row["error"] == whose + told for row in failed), failed


def check_refused(rank: int, folder: str) -> None:
    words = KINDS["retrieval"] | ({"captions": ["caption"]} if rank == 1 else {})
    leave, dist.destroy_process_group = dist.destroy_process_group, lambda *_: None
    try:
        assert train(Path(folder) / "run", *scheduled(("retrieval", words))) == 2
    finally:
        dist.destroy_process_group = leave
    dist.barrier()


def check_all(rank: int, folder: str) -> None:
    check_refused(rank, folder)
    for where in PLACES:
        check_ranks(rank, folder, where)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_failure_of_one_rank_is_everybodys(tmp_path: Path) -> None:
    """No rank waits for one that is not coming; the training goes on, or does not begin."""
    write_vqa_recipe(tmp_path / "vqa")
    run_ranks(check_all, 2, str(tmp_path))
