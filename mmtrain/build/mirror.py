"""run.mirror in a run: taken from where a machine is new, sent to while it trains, waited for."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from mmtrain.build.run import Run
from mmtrain.data.storage.place import Place
from mmtrain.errors import UsageError
from mmtrain.ranks import gather, is_alone, on_rank_0, on_rank_0_at_leisure, own_rank
from mmtrain.recipe import TrainRecipe, names_start
from mmtrain.settings.decode import encode
from mmtrain.train.config import RunConfig
from mmtrain.train.copy_files import push_files
from mmtrain.train.copy_run import (
    Say,
    open_copy,
    pull_newer,
    refuse_other_run,
    sealed_copies,
)
from mmtrain.train.guard import TrainingStopped
from mmtrain.train.mirror import Mirror
from mmtrain.train.run_folder import FACTS_FILE, RECIPE_FILE

_KEY = "run.mirror"


def refuse_held_mirror(config: RunConfig) -> None:
    """Refuse a mirror that a new run would overwrite. Collective.

    Raises:
        UsageError: it holds a sealed checkpoint, or cannot be asked.
    """
    if config.mirror is not None:
        on_rank_0_at_leisure(lambda: _refuse_held(config))


def _refuse_held(config: RunConfig) -> None:
    with _reached(config) as place:
        if there := sealed_copies(place):
            raise UsageError(
                f"{_KEY} = {place.named} already holds a run of {max(there)} steps; add --resume "
                "to go on with it, or name another place"
            )


def take_begun(recipe: TrainRecipe, *, say: Say) -> None:
    """Bring a run that began elsewhere from weights that may be gone, before it is built: its own
    checkpoint has them. Whether it is this run, its resume looks at. Collective.

    Raises:
        UsageError: the mirror cannot be read.
    """
    if recipe.run.mirror is not None and names_start(encode(recipe)):
        on_rank_0_at_leisure(lambda: _take_unseen(recipe.run, say))


def _take_unseen(config: RunConfig, say: Say) -> None:
    with _reached(config) as place:
        if sealed_copies(place):
            pull_newer(place, Path(config.dir), check=lambda _: None, say=say, key=_KEY)


def take_from_mirror(run: Run, *, say: Say) -> None:
    """Bring what the mirror has and the run's folder has not, before it is resumed. Collective.

    Raises:
        UsageError: the mirror holds another run, or cannot be read.
    """
    if run.recipe.run.mirror is not None:
        on_rank_0_at_leisure(lambda: _take(run, say))


def _take(run: Run, say: Say) -> None:
    with _reached(run.recipe.run) as place:

        def check(folder: str) -> None:
            identity = run.state.identity
            refuse_other_run(place, folder, identity=identity, recipe=run.recipe, key=_KEY)

        pull_newer(place, run.folder, check=check, say=say, key=_KEY)


class RunMirror:
    """Within the context what the run seals goes to its mirror, if it has one. Collective to enter
    and to `finish`.

    Args:
        run: resumed, its recipe written.
        say: gets a line, on rank 0.

    Raises:
        UsageError: the ranks do not share the run's folder, or the mirror cannot be written to.
    """

    def __init__(self, run: Run, *, say: Callable[[str], object]) -> None:
        self._run, self._config, self._say = run, run.recipe.run, say
        self._mirror: Mirror | None = None
        self._failed: str | None = None

    def __enter__(self) -> "RunMirror":
        if self._config.mirror is not None:
            if not is_alone():
                _refuse_unshared(self._run.folder)
            on_rank_0_at_leisure(self._try)
            if own_rank() == 0:
                self._mirror = self._begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, TrainingStopped):  # on every rank
            self.finish()
        if self._mirror is not None:
            self._mirror.close()

    def figures(self) -> Mapping[str, float]:
        """For a line of metrics.jsonl."""
        return {} if self._mirror is None else self._mirror.figures()

    def finish(self) -> None:
        """Wait for what is still being sent, as long as the recipe allows, and tell the outcome."""
        if self._config.mirror is None:
            return
        seconds = 60 * self._config.mirror_minutes
        self._failed = on_rank_0_at_leisure(lambda: self._wait(seconds))
        if self._failed is None:
            self._say(f"{_KEY} = {self._config.mirror} has everything")
        else:
            self._say(self._told())

    def refuse_behind(self) -> None:
        """End a run whose mirror does not have all of it.

        Raises:
            UsageError: why, and how to send it.
        """
        if self._failed is not None:
            raise UsageError(self._told())

    def _told(self) -> str:
        place = self._config.mirror
        return (
            f"{_KEY} = {place} does not have the newest checkpoint and files: {self._failed}; all "
            f"is in {self._run.folder}; mmtrain checkpoint push {self._run.folder} {place} sends it"
        )

    def _try(self) -> None:
        """A first small file, now: rights that are missing must not be found out at night."""
        with _reached(self._config) as place:
            push_files(self._run.folder, place, only=(RECIPE_FILE, FACTS_FILE))

    def _begin(self) -> Mirror:
        assert self._config.mirror is not None, "see __enter__"
        keep = self._run.recipe.train.keep_checkpoints
        place = open_copy(self._config.mirror, self._run.folder, key=_KEY)
        return Mirror(place, self._run.folder, keep=keep, say=self._say)

    def _wait(self, seconds: float) -> str | None:
        assert self._mirror is not None, "on rank 0"
        return self._mirror.finish(seconds=seconds)


@contextmanager
def _reached(config: RunConfig) -> Iterator[Place]:
    assert config.mirror is not None, "asked by the caller"
    place = open_copy(config.mirror, Path(config.dir), key=_KEY)
    try:
        yield place
    except OSError as error:
        raise UsageError(
            f"{_KEY} = {place.named}: {error.filename or place.named}: {error.strerror}; mend "
            "that, or go on without a mirror by --run.mirror none"
        ) from error


def _refuse_unshared(folder: Path) -> None:
    """Rank 0 sends what all have written, so it must see it."""
    token = on_rank_0(lambda: _leave_token(folder))
    seen = gather(token.exists())
    on_rank_0(token.unlink)
    if not all(seen):
        raise UsageError(
            f"run.dir = {folder} is another folder on rank {seen.index(False)} than on rank 0, "
            f"which sends to {_KEY} what all have written; put it on a file system that they share"
        )


def _leave_token(folder: Path) -> Path:
    token = folder / f".shared-{uuid.uuid4().hex}"
    token.touch()
    return token
