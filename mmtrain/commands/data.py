"""`mmtrain data`: indexes of shards, and checks of whatever can be trained on."""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmtrain.commands.data_questions import QuestionOptions, tell_questions
from mmtrain.commands.outputs import refuse_idle
from mmtrain.data.dialogues.reader import DialogueReader
from mmtrain.data.dialogues.source import holds_dialogues, refuse_no_dialogues, told_makers
from mmtrain.data.first_look import refuse_unknown_places
from mmtrain.data.questions.check import (
    QuestionReport,
    check_packed_questions,
    check_question_files,
    holds_questions,
)
from mmtrain.data.questions.source import brings_questions
from mmtrain.data.sample_check import SampleReport, check_samples, check_with
from mmtrain.data.shards.cataloguing import write_catalogues
from mmtrain.data.shards.check import CheckReport, ShardCheck, check_shards, index_shards
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.open import open_source, open_unsharded
from mmtrain.data.sources.source import IMAGE_KEY, SampleSource
from mmtrain.data.storage.caches import asked_for
from mmtrain.data.survey.share import shared_samples
from mmtrain.errors import FaultsFound, UsageError
from mmtrain.progress import Progress, speaker
from mmtrain.settings.counted import counted
from mmtrain.settings.numbers import WHOLE


def data_index_command(
    *,
    data: tuple[str, ...],
    index_dir: Path | None,
    trust: bool,
    part: tuple[int, int],
    merge: bool,
    workers: int | None,
    quiet: bool = False,
) -> None:
    """`mmtrain data index`: write what indexes are missing or stale, with checksums, and join all
    into a catalogue; tell of what changed since there were others, and of damage."""
    if merge:
        idle = {"--trust": trust, "--workers": workers, "--cache-dir": asked_for()}
        refuse_idle(idle, "with --merge, which reads no shard")
    _refuse_no_shards(data)
    say = speaker(quiet)
    with Progress("shards", quiet=quiet) as progress:
        report = index_shards(
            data,
            index_dir=_text(index_dir),
            trust=trust,
            part=part,
            may_make=not merge,
            processes=workers or min(8, os.cpu_count() or 1),
            progress=progress,
        )
    for line in report.changes:
        print(f"changed since the checksums that are replaced: {line}")
    say(
        f"{counted(report.num_samples, 'sample')} in {counted(len(report.shards), 'shard')}; "
        f"{counted(report.num_new, 'index', 'es')} written"
    )
    if part[1] == 1:
        with Progress("indexes joined", quiet=quiet) as progress:
            joined = write_catalogues(report.shards, index_dir=_text(index_dir), progress=progress)
        for path in joined:
            say(f"wrote {path}")
    _refuse(report.problems, data)


def _refuse_no_shards(data: tuple[str, ...]) -> None:
    """Data of another kind have no index.

    Raises:
        UsageError: they are that, or cannot be read.
    """
    told = f"{' '.join(data)} is read as it is: only shards have indexes"
    if len(data) == 1 and brings_questions(data[0], "data"):
        raise UsageError(f"{told}; leave this step out")
    make = told_makers(IMAGE_KEY, None)
    source = open_unsharded(data, image_key=IMAGE_KEY, key="data", make=make)
    if source is not None:
        is_packed = not holds_dialogues(source)
        hint = "mmtrain data make packs it into some" if is_packed else "leave this step out"
        raise UsageError(f"{told}; {hint}")


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What is checked, and what a training would want of it."""

    data: tuple[str, ...]
    """Paths as data.train takes them."""
    index_dir: Path | None
    """Where indexes are."""
    image_key: str
    """As data.image_key."""
    images: Path | None
    """As vqa.dialogues.images."""
    captions: tuple[str, ...] | None
    """Places where captions are; empty: none are wanted; None: .txt, or there are questions."""
    questions: QuestionOptions
    """Where questions are, and what is asked of them."""
    label_key: str | None
    """Field of the labels that are counted."""
    workers: int
    """Processes."""
    part: tuple[int, int]
    """Which of n parts of the data."""

    def idle_on_questions(self) -> dict[str, object]:
        """What says nothing about questions."""
        return {"--captions": self.captions, "--label-key": self.label_key}


def data_check_command(options: CheckOptions) -> None:
    """`mmtrain data check`: compare every shard with its index, member by member; then read every
    sample as a training would, one on questions where there are some.

    Raises:
        FaultsFound: a sample would not be used.
        UsageError: a shard is damaged or no longer what was indexed.
    """
    if options.questions.is_set(options.data):
        tell_questions(_read_question_files(options))
        return
    source = open_no_shards(options)
    if source is None:
        tell_shards(compare_shards(options), options)
    report = read_samples(options, source)
    if isinstance(report, QuestionReport):
        tell_questions(report)
    else:
        tell_samples(report, options)


def _read_question_files(options: CheckOptions) -> QuestionReport:
    part = None if options.part == WHOLE else options.part
    idle = {"--index-dir": options.index_dir, "--shard-range": part, "--images": options.images}
    refuse_idle(options.idle_on_questions() | idle, "on a check of a set of questions")
    given = options.questions
    return check_question_files(
        options.data,
        questions=given.questions,
        annotations=given.annotations,
        image_key=options.image_key,
        min_count=given.min_count,
        workers=options.workers,
    )


def open_no_shards(options: CheckOptions) -> SampleSource | None:
    """The data where they are none of shards.

    Raises:
        UsageError: they are not there, or have no index and are asked for one.
    """
    index_dir = options.index_dir
    if index_dir is not None and not index_dir.is_dir():
        raise UsageError(
            f"index_dir = {index_dir} is no folder, so no index can be compared with; name the one "
            "that `mmtrain data index` was given"
        )
    if options.images is not None and not options.images.is_dir():
        raise UsageError(f"--images = {options.images} is no folder; name one that exists")
    source = open_unsharded(
        options.data,
        image_key=options.image_key,
        key="data",
        make=told_makers(options.image_key, _text(options.images)),
    )
    if source is not None and index_dir is not None:
        raise UsageError(f"--index-dir = {index_dir}: only shards have indexes; leave it out")
    return source


def compare_shards(options: CheckOptions) -> CheckReport:
    """What became of the shards of the part since they were indexed.

    Raises:
        UsageError: they are not there, or there are fewer than parts.
    """
    return check_shards(options.data, index_dir=_text(options.index_dir), part=options.part)


def read_samples(
    options: CheckOptions, source: SampleSource | None
) -> SampleReport | QuestionReport:
    """What of the part a training would not use; one on questions where the samples have some and
    nobody said where captions are.

    Args:
        options: what is asked for.
        source: the data; None: shards.

    Raises:
        UsageError: they cannot be read.
    """
    if source is not None:
        samples = None if options.part == WHOLE else shared_samples(source, options.part)
        return _read_all(options, source, samples)
    with tempfile.TemporaryDirectory() as indexes:  # a check writes nothing beside the shards
        source = open_source(
            options.data,
            image_key=options.image_key,
            index_dir=indexes,
            key="data",
            part=options.part,
        )
        return _read_all(options, source, None)


def _read_all(
    options: CheckOptions, source: SampleSource, samples: np.ndarray | None
) -> SampleReport | QuestionReport:
    min_count = options.questions.min_count
    is_told = options.captions is None or not isinstance(source, ShardSource)
    if is_told and holds_dialogues(source):
        return _read_dialogues(options, source, samples)
    refuse_idle({"--images": options.images}, "on a check of data that are no file of dialogues")
    if options.captions is None and holds_questions(source):
        print("the samples hold questions, which are checked; --captions checks captions")
        refuse_idle(options.idle_on_questions(), "on a check of questions")
        if options.part != WHOLE:
            refuse_idle(
                {"--min-count": min_count}, "on a check of a share, which has not all answers"
            )
        return check_packed_questions(
            source, samples=samples, min_count=min_count, workers=options.workers
        )
    refuse_idle({"--min-count": min_count}, "on a check of captions")
    places = ("txt",) if options.captions is None else options.captions
    refuse_unknown_places(source, places)
    return check_samples(
        source,
        captions=dict.fromkeys(places, 1.0),
        label_key=options.label_key,
        workers=options.workers,
        samples=samples,
    )


def _read_dialogues(
    options: CheckOptions, source: SampleSource, samples: np.ndarray | None
) -> SampleReport:
    is_packed = isinstance(source, ShardSource)
    instead = "; --captions checks captions" if is_packed else ""
    print(f"the samples are dialogues, which are checked{instead}")
    own_key = None if options.image_key == IMAGE_KEY else options.image_key
    idle = {"--min-count": options.questions.min_count, "--image-key": own_key}
    refuse_idle(options.idle_on_questions() | idle, "on a check of dialogues")
    if is_packed:
        refuse_idle({"--images": options.images}, "on a check of shards, which hold their images")
    refuse_no_dialogues(source, told=" ".join(options.data))
    reader = DialogueReader(source, transform=None)
    return check_with(reader, samples=samples, workers=options.workers)


def tell_shards(report: CheckReport, options: CheckOptions) -> None:
    """Say what became of each shard.

    Raises:
        UsageError: of one something that is wrong.
    """
    for shard in report.shards:
        print(f"{shard.path}: {_state(shard)}")
    _refuse(report.problems, options.data)


def _state(shard: ShardCheck) -> str:
    """What was found in a shard; what is wrong with it has lines of its own."""
    if not shard.is_readable:
        return "cannot be read"
    state = f"{counted(shard.num_samples, 'sample')}, "
    if shard.problems:
        state += "damaged or changed" if shard.is_indexed else "damaged"
    else:
        state += "verified" if shard.is_verified else "readable"
        if not shard.is_indexed:
            state += ", but it has no index to compare with (mmtrain data index writes one)"
        elif not shard.is_verified:
            state += ", but its index has no checksums (mmtrain data index adds them)"
    if shard.num_ignored:
        state += f"; {shard.num_ignored} files are of no sample (hidden or without extension)"
    return state


def tell_samples(report: SampleReport, options: CheckOptions) -> None:
    """Say which samples cannot be used.

    Raises:
        FaultsFound: there are any.
        UsageError: none of all has the label that is asked for.
    """
    if options.label_key is not None:
        told = (
            f"label_key = {options.label_key}: {report.num_labelled:,} of "
            f"{counted(report.num_samples, 'sample')}"
        )
        if not report.num_labelled and options.part == WHOLE:
            raise UsageError(f"{told} have it; name a field that the .json has, or leave it out")
        print(f"{told} have a label")
    for sample in report.named:
        print(f"mmtrain: {sample}", file=sys.stderr)
    if (more := report.num_unusable - len(report.named)) > 0:
        print(f"mmtrain: and {more:,} more", file=sys.stderr)
    if not report.num_unusable:
        print(f"{counted(report.num_samples, 'sample')}, all can be used")
        return
    told = f"{report.num_unusable:,} of {counted(report.num_samples, 'sample')} would not be used"
    hint = f"; {report.hint}; --captions names other places, --no-captions none"
    raise FaultsFound(f"{told} ({report.told}){hint if report.hint else ''}")


def _refuse(problems: tuple[str, ...], data: tuple[str, ...]) -> None:
    """End with status 2 where something is wrong, every problem on a line of its own."""
    for problem in problems:
        print(f"mmtrain: {problem}", file=sys.stderr)
    if problems:
        named = " ".join(data)
        raise UsageError(
            f"{counted(len(problems), 'problem')} found in {named}; fetch or pack those shards "
            "again"
        )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
