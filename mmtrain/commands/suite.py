"""`mmtrain eval suite`: many evaluations of many models, and one table."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from mmtrain.commands.evaluate import ModelOptions, build_encoder, join_ranks
from mmtrain.commands.outputs import refuse_idle
from mmtrain.commands.vqa import build_answerer
from mmtrain.data.shards.patterns import is_in_store
from mmtrain.data.storage.caches import asked_for
from mmtrain.data.storage.patience import waiting
from mmtrain.errors import FaultsFound, UsageError
from mmtrain.eval.encode import Encoder
from mmtrain.eval.features.store import FeatureStore
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.files import real_path
from mmtrain.interop.bare_weights import named_config
from mmtrain.interop.open_clip_files import says_itself
from mmtrain.loading.hub_models import model_folder, pinned
from mmtrain.loading.vqa import is_vqa_folder
from mmtrain.parallel.mesh import Layout, leave_ranks
from mmtrain.progress import speaker
from mmtrain.ranks import on_rank_0, own_rank
from mmtrain.report.compare import distinct_names
from mmtrain.suite.config import data_of, load_suite
from mmtrain.suite.folder import SuiteFolder
from mmtrain.suite.judged import Judged, Sort
from mmtrain.suite.page import write_suite_page
from mmtrain.suite.running import run_suite
from mmtrain.suite.table import Average, Table, write_table


def eval_suite_command(
    *, suite: Path, root: Path | None, models: Sequence[str], running: ModelOptions, out: Path
) -> None:
    """`mmtrain eval suite`, alone or under torchrun; begun again, it goes on.

    Args:
        suite: its file, or the name of one that travels with mmtrain.
        root: where the data are, over what the suite says.
        models: what `load` takes.
        running: how each is run; its path is not looked at.
        out: the folder of results and table.

    Raises:
        UsageError: a mistake in the words or in the suite, another process writes `out`.
        FaultsFound: the table is written, and something of it failed.
    """
    config = load_suite(suite, root=root)
    paths = [path for one in config.all for path in data_of(one)]
    if asked_for() is not None and not any(map(is_in_store, paths)):
        refuse_idle({"--cache-dir": True}, f"on {suite}, none of whose data are in a store")
    addresses = [pinned(text, key="--models") for text in models]
    folders = [model_folder(text, key="--models") for text in addresses]
    names = distinct_names([_told(*pair) for pair in zip(addresses, folders, strict=True)])
    _refuse_twice(folders)
    _check_architecture(running.architecture, folders)
    layout, folder = join_ranks(running), SuiteFolder(path=out)
    say = speaker(running.quiet or own_rank() != 0)
    progress = running.progress()
    store = FeatureStore(folder.features, progress=progress)
    makers: list[tuple[str, Callable[[], Judged]]] = [
        (address, partial(_judged, name, folder, replace(running, path=folder), layout, store))
        for address, folder, name in zip(addresses, folders, names, strict=True)
    ]
    with _held(folder), waiting(running.retry_seconds), progress:
        table = run_suite(suite.stem, config, folder=folder, models=makers, say=say)
        on_rank_0(lambda: _write(out, table, say))
    leave_ranks()
    if all(column.failed for column in table.columns):
        raise UsageError(f"--models: none of them could be judged; {table.failures[0]}")
    if table.failures:
        first, *more = table.failures
        also = f" (and {len(more)} more)" if more else ""
        raise FaultsFound(f"{first}{also}; {out / 'table.json'} names all")


@contextmanager
def _held(folder: SuiteFolder) -> Iterator[None]:
    """Within the context, no other process writes the folder; collective at its start."""
    is_main, lock = own_rank() == 0, on_rank_0(folder.lock)
    try:
        yield
    finally:
        if is_main:
            os.close(lock)


def _told(address: str, folder: Path) -> Path:
    """What a model's name is taken of: where it was fetched from, or its own folder."""
    name = address.removeprefix("hf://").partition("@")[0]
    return folder if name == address else Path(name)


def _refuse_twice(models: Sequence[Path]) -> None:
    named = [real_path(path) for path in models]
    for number, path in enumerate(models):
        if named[number] in named[:number]:
            raise UsageError(f"--models: {path} is named twice; name every model once")


def _check_architecture(name: str | None, models: Sequence[Path]) -> None:
    if name is None:
        return
    named_config(name)
    if not any(_needs_name(path) for path in models):
        raise UsageError(f"architecture = {name} has no effect: each of the models says its own")


def _needs_name(path: Path) -> bool:
    """Whether it is a file of weights that does not say what they are of."""
    return path.is_file() and not says_itself(path)


def _judged(
    name: str, path: Path, options: ModelOptions, layout: Layout, store: FeatureStore
) -> Judged:
    answers = is_vqa_folder(path)

    def load(sort: Sort) -> Encoder | Answerer:
        asked = options if _needs_name(path) else replace(options, architecture=None)
        if sort == "answers":
            return build_answerer(asked, layout=layout)
        return build_encoder(asked, images_only=sort == "images", layout=layout)

    return Judged(name, answers=answers, load=load, store=store)


def _write(out: Path, table: Table, say: Callable[[str], None]) -> None:
    """In words what is found, then the files."""
    for status, told in (("missing", "not on this disk"), ("lacking", "without their metric")):
        if some := [row.name for row in table.rows if row.status == status]:
            say(f"{len(some)} of {len(table.rows)} evaluations {told}: {', '.join(some)}")
    for one in table.averages:
        if one.over:
            of = f"{len(one.over)} of {len(one.over) + len(one.left_out)}"
            say(f"{one.name}, average over {of} evaluations")
            _say_means(table, one, say)
    try:
        write_table(out, table)
    except OSError as error:
        raise UsageError(f"out = {out} cannot be written: {error.strerror}") from error
    write_suite_page(out / "table.html", table)
    say(f"wrote {out / 'table.html'}, table.json and table.csv")


def _say_means(table: Table, one: Average, say: Callable[[str], None]) -> None:
    width = max(len(column.name) for column in table.columns)
    for column, mean in zip(table.columns, one.means, strict=True):
        say(f"  {column.name:{width}}  {'-' if mean is None else f'{mean.value:7.2%}'}")
