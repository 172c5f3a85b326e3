"""Settings that shards alone have, once it is known what the data are."""

from collections.abc import Sequence

from mmtrain.data.config import DataConfig
from mmtrain.data.joins.joined import JoinedSource
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.threads import Threads
from mmtrain.errors import UsageError
from mmtrain.limits import idle_line

_REMOTE_THREADS = 8


def refuse_without_shards(config: DataConfig, sources: Sequence[SampleSource]) -> None:
    """Refuse settings that no source reads.

    Raises:
        UsageError: naming them.
    """
    if any(isinstance(inner_source(source), ShardSource) for source in sources):
        return
    joins_shards = any(isinstance(one, JoinedSource) and one.joins_shards for one in sources)
    names = ("verify", "on_damage") if joins_shards else ("index_dir", "verify", "on_damage")
    values = {name: getattr(config, name) for name in names}
    idle = [f"data.{n} = {v}" for n, v in values.items() if v != getattr(DataConfig, n)]
    if idle:
        why = ": none of the data are shards, which alone have indexes and checksums"
        raise UsageError(idle_line(idle, why))


def inner_source(source: SampleSource) -> SampleSource:
    """What anything is joined to, or the source itself."""
    return source.inner if isinstance(source, JoinedSource) else source


def open_threads(config: DataConfig, sources: Sequence[SampleSource]) -> Threads:
    """What reads the samples of a batch.

    Raises:
        UsageError: not all sources can be read by several threads.
    """
    if not all(isinstance(source, ShardSource) for source in sources):
        if (config.threads or 1) > 1:
            raise UsageError(
                f"data.threads = {config.threads} reads shards alone; pack the data into some "
                "(mmtrain data make), or use data.workers"
            )
        return Threads(1)
    is_remote = any(isinstance(one, ShardSource) and one.is_remote for one in sources)
    return Threads(config.threads or (_REMOTE_THREADS if is_remote else 1))
