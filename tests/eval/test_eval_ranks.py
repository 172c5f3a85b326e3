"""Evaluation over ranks is one process's evaluation, to the last sample."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mmtrain.errors import UsageError
from mmtrain.eval import EvalResult, evaluate_retrieval, evaluate_zero_shot, scores
from mmtrain.eval.classify.knn import evaluate_knn
from mmtrain.eval.classify.linear_probe import evaluate_linear_probe
from mmtrain.eval.features.embed import embed
from tests.data.shard_files import write_shard
from tests.eval.features.test_embed import embed_on_ranks, files_of
from tests.eval.test_retrieval import several
from tests.eval.tiny import LinearTowers, make_encoder, write_captioned, write_classified
from tests.ranks import run_ranks

COUNTS = (1, 7, 17)
CLASSES = [f"thing {number}" for number in range(6)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the ranks have: products may be summed in another order by more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def results(folder: Path, **fields: Any) -> Iterator[tuple[str, EvalResult]]:
    """Every evaluation of every size of set, smaller and larger than a round of batches."""
    for count in COUNTS:
        encoder = make_encoder(**fields)
        data = str(folder / f"classified-{count}.tar")
        yield (
            f"zero-shot of {count}",
            evaluate_zero_shot(encoder, data=data, classes=CLASSES, templates="simple"),
        )
        data = str(folder / f"captioned-{count}.tar")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(scores, "MAX_SCORES", 60)  # so that blocks of scores are shared too
            result = evaluate_retrieval(encoder, data=data, captions=["captions"], num_examples=3)
        yield f"retrieval of {count}", result
    sets: dict[str, Any] = {
        "train": f"{folder}/classified-17.tar",
        "test": f"{folder}/classified-7.tar",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "MAX_SCORES", 20)
        encoder = make_encoder(**fields)
        yield "probe", evaluate_linear_probe(encoder, classes=CLASSES, strengths=(1, 9, 99), **sets)
        yield "neighbours", evaluate_knn(encoder, classes=CLASSES, neighbours=3, **sets)


def compare(rank: int, folder: str, wanted: dict[str, EvalResult]) -> None:
    # As under torchrun; a rank that was spawned would spawn its workers, seconds for each.
    multiprocessing.set_start_method("fork", force=True)
    pair = dist.new_group([0, 1])
    if rank < 2:
        equal_one_process(rank, Path(folder), pair, wanted, workers=1)
    equal_one_process(rank, Path(folder), dist.group.WORLD, wanted, workers=0)
    forward_passes_are_as_many(folder, dist.group.WORLD)
    a_fault_on_one_rank_stops_all(folder, dist.group.WORLD)
    embed_on_ranks(rank, folder)


def equal_one_process(
    rank: int, folder: Path, group: Any, wanted: dict[str, EvalResult], *, workers: int
) -> None:
    for name, result in results(folder, group=group, workers=workers):
        assert result.figures == wanted[name].figures, f"{name} on rank {rank}"
        if rank == 0:
            assert result == wanted[name], f"examples of {name}"
        else:
            assert not result.best and not result.worst


def forward_passes_are_as_many(folder: str, group: Any) -> None:
    """A sharded model's forward passes are collective: unequal numbers would hang."""
    for count in COUNTS:
        model = LinearTowers()
        data = f"{folder}/classified-{count}.tar"
        evaluate_zero_shot(make_encoder(model, group=group), data=data, classes=CLASSES)
        passes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(passes, len(model.batch_sizes))
        assert len(set(passes)) == 1, passes


def a_fault_on_one_rank_stops_all(folder: str, group: Any) -> None:
    with pytest.raises(UsageError, match=r"sample bad of .*faulty.tar: no image"):
        evaluate_zero_shot(
            make_encoder(group=group), data=f"{folder}/faulty.tar", classes=CLASSES, label_key="cls"
        )
    dist.barrier()


def test_two_and_three_ranks_equal_one_process(tmp_path: Path) -> None:
    for count in COUNTS:
        write_classified(tmp_path / f"classified-{count}.tar", count, num_classes=6)
        write_captioned(tmp_path / f"captioned-{count}.tar", several(count))
    write_shard(tmp_path / "faulty.tar", [("bad", {"cls": "1"})])
    wanted = dict(results(tmp_path))
    embed(make_encoder(), data=str(tmp_path / "classified-17.tar"), out=tmp_path / "one", piece=3)
    run_ranks(compare, 3, str(tmp_path), wanted)
    assert files_of(tmp_path / "ranks") == files_of(tmp_path / "one")
