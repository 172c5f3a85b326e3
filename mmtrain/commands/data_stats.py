"""`mmtrain data stats`: figures of data, at once or share by share."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmtrain.commands.data_pages import DataOptions, LookedAt
from mmtrain.commands.outputs import refuse_idle, refuse_out, refuse_overwriting
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.survey.parts import SurveyJob, SurveyParts
from mmtrain.data.survey.pick import drawn
from mmtrain.data.survey.piece import Piece
from mmtrain.data.survey.share import shared_samples
from mmtrain.data.survey.stats import Survey, figures
from mmtrain.data.text.tokenizer import Kind, TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.files import replace_file
from mmtrain.progress import Progress
from mmtrain.report.data_pages import write_stats_page

_CONTEXT_LENGTH = 77
_LONGEST_TEXT = 4096
"""Tokens up to which a caption's are counted."""


@dataclass(frozen=True, kw_only=True)
class StatsOptions:
    """What is asked about data, and where the answers go."""

    out: Path | None
    """The page."""
    json_out: Path | None
    """The figures."""
    num: int | None
    """Samples that are drawn; None: all are looked at."""
    seed: int | None
    """Of the draw; None: 0."""
    label_key: str | None
    """Field of the labels that are counted."""
    tokenizer: Path | None
    """What counts tokens; None: CLIP's."""
    context_length: int | None
    """Tokens that a model keeps; None: 77."""
    workers: int | None
    """Processes; None: 0."""
    part: tuple[int, int] | None
    """Look at one of n shares, and keep it in `parts`."""
    merge: bool
    """Look at nothing: the figures of the shares in `parts`."""
    parts: Path | None
    """The folder of the shares."""


def data_stats_command(data: DataOptions, options: StatsOptions) -> None:
    """`mmtrain data stats`: figures of a data set, as a page and as JSON; or a share of them.

    Raises:
        UsageError: neither is asked for, a file cannot be read or written, no sample has the label.
    """
    refuse_unfit(data, options)
    refuse_overwriting(data.data, {"--json": options.json_out})
    found = open_looked_at(data, options)
    source = found.source
    if options.parts is None:
        whole = look(options, found, samples_of(options, source))
        write_figures(whole, found, options, title=data.title)
        return
    parts = SurveyParts(options.parts, _job(data, options, source))
    if options.part is None:
        write_figures(parts.merged(), found, options, title=data.title)
        return
    samples = samples_of(options, source)
    parts.begin(options.part)
    path = parts.write(options.part, look(options, found, samples))
    print(f"wrote {path}: {samples.size:,} of {source.num_samples:,} samples")


def open_looked_at(data: DataOptions, options: StatsOptions) -> LookedAt:
    """The data, of which the options can be asked.

    Raises:
        UsageError: they cannot be read, or an option has no effect on them.
    """
    found = data.open()
    if found.is_dialogues:
        idle = {"--label-key": options.label_key, "--context-length": options.context_length}
        refuse_idle(idle, "on dialogues")
    return found


def samples_of(options: StatsOptions, source: SampleSource) -> np.ndarray:
    """The samples that are looked at, rising.

    Raises:
        UsageError: a part of them is asked for that would be empty.
    """
    numbers = np.arange(source.num_samples)
    if options.num is not None and options.num < source.num_samples:
        numbers = np.sort(drawn(source.num_samples, seed=options.seed or 0, num=options.num))
    if options.part is None:
        return numbers
    own = shared_samples(source, options.part)
    return own if options.num is None else np.intersect1d(numbers, own, assume_unique=True)


def look(options: StatsOptions, data: LookedAt, samples: np.ndarray) -> Piece:
    """Look at some samples.

    Raises:
        UsageError: a file cannot be read.
    """
    with Progress("samples") as progress:
        survey = Survey(
            data.source,
            numbers=samples,
            look=data.look,
            label_key=options.label_key,
            tokenizer=build_tokenizer(_tokenizer(options.tokenizer)),
            progress=progress,
        )
        return survey.run(workers=options.workers or 0)


def _job(data: DataOptions, options: StatsOptions, source: SampleSource) -> SurveyJob:
    return SurveyJob(
        data_fingerprint=source.fingerprint,
        image_key=data.image_key,
        captions=data.places,
        caption_lines=data.caption_lines,
        label_key=options.label_key,
        tokenizer=build_tokenizer(_tokenizer(options.tokenizer)).fingerprint,
        num=options.num,
        seed=None if options.num is None else options.seed or 0,
    )


def refuse_unfit(data: DataOptions, options: StatsOptions) -> None:
    """Refuse options that do nothing, and files that cannot be written.

    Raises:
        UsageError: naming them.
    """
    is_share = options.part is not None
    if options.num is None:
        refuse_idle({"--seed": options.seed}, "without --num, which draws samples")
    if options.merge:
        refuse_idle({"--workers": options.workers}, "with --merge, which looks at no sample")
    if is_share:
        refuse_idle(
            {"--context-length": options.context_length},
            "with --shard-range, which writes no figures (--merge does)",
        )
    if data.captions == ():
        idle = {"--tokenizer": options.tokenizer, "--context-length": options.context_length}
        refuse_idle(idle, "with --no-captions")
    if options.parts is None and (is_share or options.merge):
        word = "--shard-range" if is_share else "--merge"
        raise UsageError(f"{word} needs --parts DIR, the folder of all shares")
    if options.parts is not None and not (is_share or options.merge):
        raise UsageError(
            f"--parts {options.parts} does nothing without --shard-range I/N, which fills it, or "
            "--merge"
        )
    for out, option, suffix in (
        (options.out, "--out", ".html"),
        (options.json_out, "--json", ".json"),
    ):
        if out is not None and is_share:
            raise UsageError(
                f"{option} {out} wants all of the data, --shard-range a share; leave {option} out, "
                "and give it with --merge when all shares are there"
            )
        if out is not None:
            refuse_out(out, option, suffix)
    if not is_share and options.out is None and options.json_out is None:
        raise UsageError("nothing is asked for; name a page by --out, a file by --json, or both")


def write_figures(whole: Piece, data: LookedAt, options: StatsOptions, *, title: str) -> None:
    """Write what is asked for of all that was found.

    Raises:
        UsageError: no sample has the label, or a file cannot be written.
    """
    source = data.source
    stats = figures(whole, source, context_length=options.context_length or _CONTEXT_LENGTH)
    if options.label_key is not None and not stats["labels"]["num_labelled"]:
        raise UsageError(
            f"label_key = {options.label_key}: 0 of {whole.num_looked:,} samples looked at have "
            "it; name a field that the .json has, or leave it out"
        )
    if options.json_out is not None:
        text = json.dumps(stats, indent=1, ensure_ascii=False) + "\n"
        replace_file(options.json_out, text)
        print(f"wrote {options.json_out}")
    if options.out is not None:

        def pixels(sample: int, image: int) -> np.ndarray:
            return data.look(sample).pictures[image].pixels_HWC

        write_stats_page(options.out, stats, whole.columns, title=title, picture=pixels)
        print(f"wrote {options.out}")


def _tokenizer(path: Path | None) -> TokenizerConfig:
    if path is None:
        return TokenizerConfig(context_length=_LONGEST_TEXT)
    kinds: dict[str, Kind] = {".model": "sentencepiece", ".json": "json"}
    if path.suffix not in kinds:
        raise UsageError(f"--tokenizer {path} must be a .model or a tokenizer.json")
    return TokenizerConfig(kind=kinds[path.suffix], path=str(path), context_length=_LONGEST_TEXT)
