"""`mmtrain data view`: a sheet of samples; and the data that `view`, `stats` and `make` look at."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mmtrain.commands.outputs import refuse_idle, refuse_out
from mmtrain.data.dialogues.source import holds_dialogues, told_makers
from mmtrain.data.first_look import refuse_unknown_places
from mmtrain.data.questions.check import holds_questions
from mmtrain.data.questions.source import brings_questions
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.source import IMAGE_KEY, SampleSource
from mmtrain.data.survey.pick import pick
from mmtrain.data.survey.seen import Seen, look_at
from mmtrain.data.survey.seen_dialogue import look_at_dialogue
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

    def open(self) -> "LookedAt":
        """The source, and how it is looked at.

        Raises:
            UsageError: it cannot be read, has questions where captions are wanted, or an option has
                no effect on it.
        """
        if len(self.data) == 1 and brings_questions(self.data[0], "data"):
            raise UsageError(
                f"{self.title} brings questions about images, which mmtrain data check reads; the "
                "other commands take images with captions, classes or dialogues"
            )
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
            own_key = None if self.image_key == IMAGE_KEY else self.image_key
            captions = self.captions if self.captions else None
            idle = {"--captions": captions, "--no-captions": self.captions == ()}
            idle |= {"--caption-lines": self.caption_lines, "--image-key": own_key}
            refuse_idle(idle, "on dialogues")
            return LookedAt(source, partial(look_at_dialogue, source), is_dialogues=True)
        if self.captions is None and holds_questions(source, most=1):
            raise UsageError(
                f"{self.title} holds questions about images, which mmtrain data check reads; "
                "--no-captions takes the images alone (made into shards, they keep their questions "
                "in the .json), --captions txt those that have one beside"
            )
        refuse_unknown_places(source, self.places)
        lines = self.caption_lines or None
        look = partial(look_at, source, captions=self.places, caption_lines=lines)
        return LookedAt(source, look, is_dialogues=False)

    def open_to_pack(self, command: str) -> SampleSource:
        """The source of what is made into shards.

        Args:
            command: `make` or `split`, for messages.

        Raises:
            UsageError: as above, or it holds dialogues.
        """
        found = self.open()
        if found.is_dialogues:
            raise UsageError(
                f"{self.title} holds dialogues, which mmtrain data {command} does not know; a "
                "recipe with [vqa.dialogues] trains on them as they are, and mmtrain data check, "
                "view and stats look at them"
            )
        return found.source

    @property
    def title(self) -> str:
        """What a page about it is called."""
        return " ".join(self.data)


class LookedAt(NamedTuple):
    """Data, and how a sample of them is looked at."""

    source: SampleSource
    """The samples."""
    look: Callable[[int], Seen]
    """Reads one."""
    is_dialogues: bool
    """Whether they are dialogues."""


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
    source, look, is_dialogues = options.open()
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
    kind = "dialogues" if is_dialogues else "samples"
    of = kind if source.num_samples != 1 else kind.removesuffix("s")
    subtitle = f"{len(found):,} of {source.num_samples:,} {of}, drawn with seed {seed}{told}"
    if part is not None:
        subtitle += f"; from share {part[0]}/{part[1]} of the shards"
    write_sheet(out, found, title=options.title, subtitle=subtitle)
    shown = kind if len(found) != 1 else kind.removesuffix("s")
    print(f"wrote {out}: {len(found):,} {shown}, {num_looked:,} looked at")
