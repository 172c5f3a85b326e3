"""`mmtrain data make` and `split`: shards of whatever can be read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mmtrain.commands.data_pages import DataOptions
from mmtrain.commands.outputs import refuse_idle
from mmtrain.data.first_look import refuse_unknown_places
from mmtrain.data.making.keys import Keys
from mmtrain.data.making.make import MakeConfig, ShardMaker, make_shards, mean_bytes
from mmtrain.data.making.split import part_of
from mmtrain.data.sample_check import Unusable
from mmtrain.data.samples import NO_CAPTION, SampleReader
from mmtrain.data.shards.check import index_shards
from mmtrain.data.sources.manifest import ManifestSource
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.sources.table import TABLE_SUFFIXES
from mmtrain.errors import UsageError
from mmtrain.progress import Progress
from mmtrain.settings.counted import counted

_MAX_NAMED = 5
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class MakeOptions(DataOptions):
    """What `make` and `split` take alike."""

    out: Path
    """The folder of the shards."""
    images: Path | None
    """Where a table's relative paths start; None: beside the table."""
    samples_per_shard: int | None
    """At most; None: by size."""
    shard_bytes: int
    """About this many in a shard, where no number of samples is asked for."""
    seed: int | None
    """Of the order; None: the order of the data."""
    skip_bad: bool
    """Leave out what cannot be used."""
    part: tuple[int, int]
    """Which share of the shards."""
    workers: int
    """Processes."""


def data_make_command(options: MakeOptions) -> None:
    """`mmtrain data make`: every sample into shards, in a folder.

    Raises:
        UsageError: samples cannot be used and are not to be left out, or a file cannot be read or
            written.
    """
    source = _open(options, "make")
    num = _make(options, source, Keys(source), out=options.out)
    print(f"{counted(num, 'sample')} in {_shards_told(options.out)}")
    print(f'a recipe names them as data.train = "{options.out}/*.tar"')


def data_split_command(options: MakeOptions, fractions: Sequence[tuple[str, float]]) -> None:
    """`mmtrain data split`: the same, into a folder for each part, told by the key alone.

    Raises:
        UsageError: as above; the parts do not come to 1, or one gets nothing.
    """
    shares = dict(fractions)
    told = " ".join(f"{name}={share:g}" for name, share in fractions)
    if len(shares) < len(fractions):
        raise UsageError(f"--fractions {told}: a name is there twice; name each part once")
    if abs(sum(shares.values()) - 1) > _ROUNDING:
        raise UsageError(
            f"--fractions {told} come to {sum(shares.values()):g}; make them come to 1"
        )
    source = _open(options, "split")
    keys = Keys(source)
    ends = np.cumsum(list(shares.values())).tolist()
    side = np.array([part_of(keys.plain(n), ends) for n in keys.numbers.tolist()])
    for number, (name, share) in enumerate(shares.items()):
        if not (side == number).any():
            raise UsageError(
                f"--fractions {name}={share:g}: none of {keys.numbers.size:,} samples falls there; "
                "give it more"
            )
    for number, name in enumerate(shares):
        out = options.out / name
        num = _make(options, source, keys, out=out, numbers=keys.numbers[side == number])
        print(f"{name}: {num:,} of {counted(keys.numbers.size, 'sample')} in {_shards_told(out)}")


def _open(options: MakeOptions, command: str) -> SampleSource:
    if options.images is None:
        return options.open_to_pack(command)
    refuse_idle({"--index-dir": options.index_dir}, "on data that are no shards")
    table = Path(options.data[0])
    if len(options.data) > 1 or table.suffix.lower() not in TABLE_SUFFIXES:
        raise UsageError(
            f"--images = {options.images}: only the paths in a table ({', '.join(TABLE_SUFFIXES)}) "
            f"start there, not {' '.join(options.data)}; leave it out"
        )
    if not options.images.is_dir():
        raise UsageError(f"--images = {options.images} is no folder; name the one of the images")
    source = ManifestSource(table, image_key=options.image_key, key="data", folder=options.images)
    refuse_unknown_places(source, options.places)
    return source


def _make(
    options: MakeOptions,
    source: SampleSource,
    keys: Keys,
    *,
    out: Path,
    numbers: np.ndarray | None = None,
) -> int:
    """Make a folder of shards, tell what was left out -> the samples that it holds."""
    size = options.samples_per_shard or max(1, round(options.shard_bytes / mean_bytes(source)))
    config = MakeConfig(
        samples_per_shard=size,
        captions=options.places,
        caption_lines=options.caption_lines,
        seed=options.seed,
    )
    maker = ShardMaker(
        source, out=out, config=config, skip_bad=options.skip_bad, keys=keys, numbers=numbers
    )
    job = {
        "data_fingerprint": source.fingerprint,
        "num_samples": int(maker.numbers.size),
        **asdict(config),
    }
    with Progress("shards") as progress:
        made = make_shards(
            maker, job=job, part=options.part, workers=options.workers, progress=progress
        )
    unusable = [each for one in made for each in one.unusable]
    if unusable:
        _tell(unusable, source, options, num_read=sum(one.num_read for one in made))
    shards = [str(path) for path in sorted(out.glob("*.tar"))]
    if not shards:
        raise UsageError(
            f"--shard-range {options.part[0]}/{options.part[1]}: there are only "
            f"{maker.num_shards} shards; choose fewer parts"
        )
    return index_shards(tuple(shards), trust=True, key="--out").num_samples


def _tell(
    unusable: list[Unusable], source: SampleSource, options: MakeOptions, *, num_read: int
) -> None:
    """Say what was left out.

    Raises:
        UsageError: nothing was to be, or nothing is left.
    """
    reasons = Counter(each.reason for each in unusable)
    hint = ""
    if len(unusable) == num_read and reasons.keys() == {NO_CAPTION}:
        places = dict.fromkeys(options.places, 1.0)
        reader = SampleReader(source, transform=None, captions=places)
        hint = f"; {reader.describe(0)}; --captions names other places, --no-captions none"
    of = counted(num_read, "sample")
    if not options.skip_bad:
        named = "; ".join(map(str, unusable[:_MAX_NAMED]))
        more = f" and {len(unusable) - _MAX_NAMED:,} more" if len(unusable) > _MAX_NAMED else ""
        raise UsageError(
            f"{len(unusable):,} of {of} cannot be used: {named}{more}{hint}"
            + ("" if hint else "; mend them, or leave them out with --skip-bad")
        )
    if len(unusable) == num_read:
        told = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common())
        raise UsageError(f"none of {of} can be used ({told}){hint}")
    for reason, count in reasons.most_common():
        print(f"left out: {count:,} x {reason}")


def _shards_told(out: Path) -> str:
    num = len(list(out.glob("*.tar")))
    return f"{counted(num, 'shard')} of {out}"
