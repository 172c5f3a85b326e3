"""Pack a folder of images and their captions into tar shards that recipes train on.

    python tools/make_shards.py photos --out shards
        photos/a.jpg with photos/a.txt (its caption) and, if there is one, photos/a.json
    python tools/make_shards.py photos --captions captions.csv --out shards
        captions from a table: .csv, .tsv or .jsonl with the columns file_name and caption; what
        other columns hold goes into the .json

Writes OUT/00000.tar, ... with an image, a .txt and a .json for each sample, and an index with
checksums beside each. Images are decoded once, to find the bad ones, and stored as they are. One
that has several rows in the table has several captions: the first in its .txt, all in the .json
as `captions`. The same input gives the same shards, byte for byte.
"""

import argparse
import csv
import io
import json
import os
import random
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mmtrain.cli.endings import end_well
from mmtrain.data.decode import MAX_IMAGE_PIXELS, decode_image, has_image_name
from mmtrain.data.sample_error import SampleError
from mmtrain.data.shard_check import index_shards
from mmtrain.errors import UsageError
from mmtrain.files import writing

_MAX_PER_SHARD = 10_000
_MAX_NAMED = 5
_TABLES = (".csv", ".tsv", ".jsonl")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help shows the options\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="make_shards",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", type=Path, metavar="FOLDER", help="searched with its subfolders")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument(
        "--captions", type=Path, metavar="FILE",
        help="a .csv, .tsv or .jsonl table (default: a .txt beside each image)",
    )  # fmt: skip
    parser.add_argument(
        "--image-key", default="file_name", metavar="COLUMN",
        help="the table's column with the image's path inside FOLDER (default: file_name)",
    )  # fmt: skip
    parser.add_argument(
        "--caption-key", default="caption", metavar="COLUMN",
        help="the table's column with the caption (default: caption)",
    )  # fmt: skip
    parser.add_argument(
        "--samples-per-shard", type=int, default=_MAX_PER_SHARD, metavar="N",
        help=f"1 to {_MAX_PER_SHARD} (default: {_MAX_PER_SHARD})",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the order of samples (default: 0)")
    parser.add_argument(
        "--keep-order", action="store_true",
        help="by path instead; training mixes only some shards at a time, so this suits data that"
        " is evaluated",
    )  # fmt: skip
    parser.add_argument(
        "--skip-bad", action="store_true",
        help="leave out images that are damaged or have no caption, and say how many",
    )  # fmt: skip
    return parser


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An image and what is known of it."""

    path: Path
    """The image file."""
    name: str
    """Its path inside the folder, with slashes."""
    captions: list[str]
    """The first goes into the .txt; empty: it has none."""
    fields: dict[str, Any]
    """What goes into the .json."""


def find_images(folder: Path) -> dict[str, Path]:
    """All images of a folder by their path inside it, sorted.

    Raises:
        UsageError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UsageError(f"FOLDER = {folder} is no folder; name the one that holds the images")
    found = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if has_image_name(path.name) and path.is_file()
    }
    if not found:
        raise UsageError(f"FOLDER = {folder} holds no image (.jpg, .png or alike); name another")
    return dict(sorted(found.items()))


def samples_beside(images: dict[str, Path]) -> Iterator[Sample]:
    """Captions from the .txt, fields from the .json that lie beside each image."""
    for name, path in images.items():
        text, fields = path.with_suffix(".txt"), path.with_suffix(".json")
        caption = _read(text).strip() if text.is_file() else ""
        known: Any = {}
        if fields.is_file():
            try:
                known = json.loads(_read(fields))
            except ValueError as error:
                raise UsageError(f"{fields} is no JSON ({error}); mend or remove it") from error
            if not isinstance(known, dict):
                raise UsageError(f"{fields} is no JSON object; mend or remove it")
        yield Sample(path=path, name=name, captions=[caption] * bool(caption), fields=known)


def samples_in_table(
    images: dict[str, Path], table: Path, *, image_key: str, caption_key: str
) -> Iterator[Sample]:
    """Captions and fields from a table's rows; images that it does not name are left out.

    Raises:
        UsageError: a column is missing, or an image.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(_rows(table), start=1):
        for option, key in (("--image-key", image_key), ("--caption-key", caption_key)):
            if key not in row:
                raise UsageError(
                    f"{option} {key}: row {number} of {table} has no such column; "
                    f"it has {', '.join(map(str, row))}"
                )
        name = Path(str(row[image_key])).as_posix()
        if name not in images:
            raise UsageError(
                f"--captions {table}: row {number} names {name}, which FOLDER has not; "
                "paths count from FOLDER"
            )
        rows.setdefault(name, []).append(row)
    if not rows:
        raise UsageError(f"--captions {table} has no rows; name another")
    for name in sorted(rows):
        texts = [str(row[caption_key] or "").strip() for row in rows[name]]
        captions = list(dict.fromkeys(text for text in texts if text))
        fields = {k: v for k, v in rows[name][0].items() if k not in (image_key, caption_key)}
        if len(captions) > 1:
            fields["captions"] = captions
        yield Sample(path=images[name], name=name, captions=captions, fields=fields)


def _rows(table: Path) -> Iterator[dict[str, Any]]:
    if table.suffix not in _TABLES:
        raise UsageError(f"--captions {table} must be one of {', '.join(_TABLES)}")
    content = _read(table)
    if table.suffix != ".jsonl":
        separator = "\t" if table.suffix == ".tsv" else ","
        for row in csv.DictReader(io.StringIO(content, newline=""), delimiter=separator):
            # A row too long has its rest under None, one too short has None itself.
            yield {key: value for key, value in row.items() if key is not None}
        return
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"--captions {table}: line {number} is no JSON ({error})") from error
        if not isinstance(row, dict):
            raise UsageError(f"--captions {table}: line {number} is no JSON object")
        yield row


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a file that can be read") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 ({error.reason}); convert it first") from error


def why_bad(sample: Sample) -> str | None:
    """Why a sample could not be trained on; None if it could."""
    if not sample.captions:
        return "no caption"
    try:
        decode_image(sample.path.read_bytes(), max_pixels=MAX_IMAGE_PIXELS)
    except SampleError as error:
        return str(error)
    return None


def _without_bad(samples: list[Sample], *, skip_bad: bool) -> list[Sample]:
    reasons = {sample.name: reason for sample in samples if (reason := why_bad(sample))}
    if reasons and not skip_bad:
        named = ", ".join(f"{name} ({why})" for name, why in list(reasons.items())[:_MAX_NAMED])
        more = f" and {len(reasons) - _MAX_NAMED} more" if len(reasons) > _MAX_NAMED else ""
        raise UsageError(
            f"{len(reasons)} of {len(samples)} images cannot be used: {named}{more}; "
            "mend them, or leave them out with --skip-bad"
        )
    counts = Counter(reasons.values()).most_common()
    for reason, count in counts:
        print(f"left out: {count} x {reason}")
    kept = [sample for sample in samples if sample.name not in reasons]
    if not kept:
        raise UsageError(f"none of {len(samples)} images can be used ({counts[0][0]})")
    return kept


def write_shard(path: Path, samples: list[Sample], *, number: int) -> None:
    """One shard, there whole or not at all; keys as img2dataset numbers them."""
    partial = path.with_name(f".{path.name}.partial")
    with writing(path), tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as tar:
        for place, sample in enumerate(samples):
            key = f"{number:05}{place:04}"
            fields = {"key": key, "file_name": sample.name} | sample.fields
            files = {
                sample.path.suffix.lower(): sample.path.read_bytes(),
                ".txt": sample.captions[0].encode("utf-8"),
                ".json": json.dumps(fields, ensure_ascii=False).encode("utf-8"),
            }
            for suffix, content in files.items():
                member = tarfile.TarInfo(key + suffix)  # no date, no owner: the same bytes always
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    os.replace(partial, path)


def run(args: argparse.Namespace) -> None:
    """Find, check, order, write, index and report."""
    if not 1 <= args.samples_per_shard <= _MAX_PER_SHARD:
        raise UsageError(
            f"--samples-per-shard {args.samples_per_shard} must be within 1 and {_MAX_PER_SHARD}"
        )
    if args.out.exists() and any(args.out.iterdir()):
        raise UsageError(f"--out {args.out} is not empty; name a new folder")
    images = find_images(args.images)
    if args.captions is None:
        found = samples_beside(images)
    else:
        found = samples_in_table(
            images, args.captions, image_key=args.image_key, caption_key=args.caption_key
        )
    samples = _without_bad(list(found), skip_bad=args.skip_bad)
    if not args.keep_order:
        random.Random(args.seed).shuffle(samples)
    args.out.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(samples), args.samples_per_shard)
    for number, start in enumerate(starts):
        part = samples[start : start + args.samples_per_shard]
        write_shard(args.out / f"{number:05}.tar", part, number=number)
    index_shards(str(args.out), key="--out")
    print(f"{len(samples)} samples in {len(starts)} shards of {args.out}")
    print(f'a recipe names them as data.train = "{args.out}/*.tar"')


def main(arguments: list[str] | None = None) -> int:
    """The program; a mistake of the user is one line and status 2."""
    return end_well(lambda: run(_parser().parse_args(arguments)), name="make_shards")


if __name__ == "__main__":
    sys.exit(main())
