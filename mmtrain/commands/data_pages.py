"""`mmtrain data view`: a sheet of samples; and the data that `view`, `stats` and `make` look at."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mmtrain.commands.outputs import refuse_idle, refuse_out
from mmtrain.data.dialogues.source import holds_dialogues, told_makers
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.survey.pick import pick
from mmtrain.data.survey.seen import look_at
from mmtrain.data.survey.share import shared_samples
from mmtrain.data.survey.where import Where
from mmtrain.errors import UsageError
from mmtrain.report.data_pages import write_sheet


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data to be looked at."""

    data: tuple[str, ...]
    """Paths as data.train takes them."""
    image_key: str
    """As data.image_key."""
    index_dir: str | None
    """Where indexes are."""
    captions: tuple[str, ...] | None
    """Places where captions are; empty: none are wanted; None: the .txt, nobody said."""
    caption_lines: bool
    """Every line of a text is a caption."""

    @property
    def places(self) -> tuple[str, ...]:
        """Where captions are, each once."""
        return ("txt",) if self.captions is None else tuple(dict.fromkeys(self.captions))

    def open(self, command: str) -> SampleSource:
        """The source.

        Args:
            command: `view`, `stats`, `make` or `split`, for messages.

        Raises:
            UsageError: it cannot be read, holds dialogues, or an option has no effect on it.
        """
        if self.captions == ():
            refuse_idle({"--caption-lines": self.caption_lines}, "with --no-captions")
        source = open_source(
            self.data,
            image_key=self.image_key,
            index_dir=self.index_dir,
            key="data",
            make=told_makers(self.image_key, None),
        )
        is_told = self.captions is None or not isinstance(source, ShardSource)
        if is_told and holds_dialogues(source, most=1):
            raise UsageError(
                f"{self.title} holds dialogues, which mmtrain data {command} does not know; "
                f"mmtrain data check {self.title} reads them all, and a recipe with "
                "[vqa.dialogues] trains on them as they are"
            )
        return source

    @property
    def title(self) -> str:
        """What a page about it is called."""
        return " ".join(self.data)


def data_view_command(
    options: DataOptions,
    *,
    out: Path,
    num: int,
    seed: int,
    keys: tuple[str, ...],
    where: tuple[str, ...],
    only_bad: bool,
    part: tuple[int, int] | None,
) -> None:
    """`mmtrain data view`: a sheet of samples.

    Raises:
        UsageError: none is meant, or the page cannot be written.
    """
    refuse_out(out, "--out", ".html")
    conditions = [Where.of(text) for text in where]
    source = options.open("view")
    look = partial(
        look_at, source, captions=options.places, caption_lines=options.caption_lines or None
    )
    share = None if part is None else shared_samples(source, part)
    found, num_looked = pick(
        source,
        num=num,
        seed=seed,
        keys=keys,
        where=conditions,
        only_bad=only_bad,
        look=look,
        among=share,
    )
    if not found:
        raise UsageError(
            f"none of {num_looked:,} samples looked at is meant by "
            + " ".join([*(f"--key {key}" for key in keys), *(f"--where {w}" for w in where)])
            + " --bad" * only_bad
            + f"; ask for less; the first is {source.key(0)}"
        )
    asked = [*keys, *where] + ["cannot be used"] * only_bad
    told = f", where {' and '.join(asked)}" if asked else ""
    subtitle = f"{len(found):,} of {source.num_samples:,} samples, drawn with seed {seed}{told}"
    if part is not None:
        subtitle += f"; from share {part[0]}/{part[1]} of the shards"
    write_sheet(out, found, title=options.title, subtitle=subtitle)
    print(f"wrote {out}: {len(found):,} samples, {num_looked:,} looked at")
