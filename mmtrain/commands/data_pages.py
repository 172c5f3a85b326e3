"""`mmtrain data view` and `stats`: pages about data."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mmtrain.commands.outputs import refuse_out
from mmtrain.commands.progress import Progress
from mmtrain.data.images.decode import decode_image
from mmtrain.data.samples import image_file
from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.survey.pick import drawn, pick
from mmtrain.data.survey.seen import look_at
from mmtrain.data.survey.stats import Survey, figures
from mmtrain.data.survey.where import Where
from mmtrain.data.text.tokenizer import Kind, TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.files import replace_file
from mmtrain.report.data_pages import write_sheet, write_stats_page

_LONGEST_TEXT = 4096
"""Tokens up to which a caption's are counted."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data to be looked at."""

    data: tuple[str, ...]
    """Paths as data.train takes them."""
    image_key: str
    """As data.image_key."""
    index_dir: str | None
    """Where indexes are."""
    captions: tuple[str, ...]
    """Places where captions are; empty: none are wanted."""
    caption_lines: bool
    """Every line of a text is a caption."""

    def open(self) -> SampleSource:
        """The source."""
        return open_source(
            self.data, image_key=self.image_key, index_dir=self.index_dir, key="data"
        )

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
) -> None:
    """`mmtrain data view`: a sheet of samples.

    Raises:
        UsageError: none is meant, or the page cannot be written.
    """
    refuse_out(out, "--out", ".html")
    conditions = [Where.of(text) for text in where]
    source = options.open()
    look = partial(
        look_at, source, captions=options.captions, caption_lines=options.caption_lines or None
    )
    found, num_looked = pick(
        source, num=num, seed=seed, keys=keys, where=conditions, only_bad=only_bad, look=look
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
    write_sheet(out, found, title=options.title, subtitle=subtitle)
    print(f"wrote {out}: {len(found):,} samples, {num_looked:,} looked at")


def data_stats_command(
    options: DataOptions,
    *,
    out: Path | None,
    json_out: Path | None,
    num: int | None,
    seed: int,
    label_key: str | None,
    tokenizer: Path | None,
    context_length: int,
    workers: int,
) -> None:
    """`mmtrain data stats`: figures of a data set, as a page and as JSON.

    Raises:
        UsageError: neither is asked for, a file cannot be read or written, no sample has the label.
    """
    if out is None and json_out is None:
        raise UsageError("nothing is asked for; name a page by --out, a file by --json, or both")
    if out is not None:
        refuse_out(out, "--out", ".html")
    if json_out is not None:
        refuse_out(json_out, "--json", ".json")
    counter = build_tokenizer(_tokenizer(tokenizer))
    source = options.open()
    numbers = np.arange(source.num_samples)
    if num is not None and num < source.num_samples:
        numbers = np.sort(drawn(source.num_samples, seed=seed, num=num))
    survey = Survey(
        source,
        numbers=numbers,
        captions=options.captions,
        caption_lines=options.caption_lines or None,
        label_key=label_key,
        tokenizer=counter,
        progress=Progress("samples"),
    )
    whole = survey.run(workers=workers)
    stats = figures(whole, source, num_looked=numbers.size, context_length=context_length)
    if label_key is not None and not stats["labels"]["num_labelled"]:
        raise UsageError(
            f"label_key = {label_key}: 0 of {numbers.size:,} samples looked at have it; name a "
            "field that the .json has, or leave it out"
        )
    if json_out is not None:
        replace_file(json_out, json.dumps(stats, indent=1, ensure_ascii=False) + "\n")
        print(f"wrote {json_out}")
    if out is not None:

        def pixels(sample: int) -> np.ndarray:
            return decode_image(image_file(source.read(sample)))

        write_stats_page(out, stats, whole.columns, title=options.title, picture=pixels)
        print(f"wrote {out}")


def _tokenizer(path: Path | None) -> TokenizerConfig:
    if path is None:
        return TokenizerConfig(context_length=_LONGEST_TEXT)
    kinds: dict[str, Kind] = {".model": "sentencepiece", ".json": "json"}
    if path.suffix not in kinds:
        raise UsageError(f"--tokenizer {path} must be a .model or a tokenizer.json")
    return TokenizerConfig(kind=kinds[path.suffix], path=str(path), context_length=_LONGEST_TEXT)
