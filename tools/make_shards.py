"""Pack a folder of images and their captions into tar shards that recipes train on.

    python tools/make_shards.py photos --out shards
        photos/a.jpg with photos/a.txt (its caption) and, if there is one, photos/a.json
    python tools/make_shards.py photos --captions captions.csv --out shards
        captions from a table (.csv, .tsv, .jsonl) with the columns file_name and caption; what
        other columns hold goes into the .json

Writes OUT/00000.tar, ... with an image, a .txt and a .json for each sample, and an index with
checksums beside each. Images are decoded once, to find the bad ones, and stored as they are. One
that has several rows in the table has several captions: the first in its .txt, all in the .json
as `captions`. The same input gives the same shards, byte for byte.
"""

import argparse
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
from mmtrain.data.images.decode import MAX_IMAGE_PIXELS, decode_image
from mmtrain.data.sample_error import SampleError
from mmtrain.data.shards.check import index_shards
from mmtrain.data.sources.folder_listing import FolderListing, list_folder
from mmtrain.data.sources.image_paths import image_extension
from mmtrain.data.sources.table import TABLE_SUFFIXES, Table
from mmtrain.errors import UsageError
from mmtrain.files import writing

_MAX_PER_SHARD = 10_000
_MAX_NAMED = 5


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
        help="a .csv, .tsv, .jsonl or .json table (default: a .txt beside each image)",
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


def find_images(folder: Path) -> FolderListing:
    """What lies in a folder; hidden files do not count.

    Raises:
        UsageError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UsageError(f"FOLDER = {folder} is no folder; name the one that holds the images")
    listing = list_folder(folder)
    if not listing.images:
        raise UsageError(f"FOLDER = {folder} holds no image (.jpg, .png or alike); name another")
    return listing


def samples_beside(listing: FolderListing) -> Iterator[Sample]:
    """Captions from the .txt, fields from the .json that lie beside each image.

    Raises:
        UsageError: captions are in a table instead, or a file cannot be read.
    """
    if listing.tables and listing.num_captioned() < len(listing.images):
        table = listing.folder / listing.tables[0]
        raise UsageError(
            f"FOLDER = {listing.folder} holds {table}, and images without a text beside them; read "
            f"the table by --captions {table}, or move it away"
        )
    for name in sorted(listing.images):
        files = {k: listing.folder / path for k, path in listing.files(name).items()}
        caption = _read(files["txt"]).strip() if "txt" in files else ""
        known: Any = {}
        if "json" in files:
            try:
                known = json.loads(_read(files["json"]))
            except ValueError as error:
                raise UsageError(f"{files['json']} is no JSON ({error}); mend it") from error
            if not isinstance(known, dict):
                raise UsageError(f"{files['json']} is no JSON object; mend or remove it")
        yield Sample(
            path=listing.folder / name, name=name, captions=[caption] * bool(caption), fields=known
        )


def samples_in_table(
    listing: FolderListing, table: Path, *, image_key: str, caption_key: str, skip_bad: bool
) -> Iterator[Sample]:
    """Captions and fields from a table's rows; images that it does not name are left out.

    Raises:
        UsageError: a column is missing; or a row is malformed or names no image of the folder, and
            is not to be left out.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    left_out: Counter[str] = Counter()
    opened = _table(table, image_key, caption_key)
    images = set(listing.images)
    for number in range(opened.num_rows):
        try:
            row = opened.row(number)
            rows.setdefault(_image_of(row, image_key, images), []).append(row)
        except SampleError as error:
            if not skip_bad:
                raise UsageError(
                    f"{opened.place(number)}: {error.told}; mend it, or leave it out with "
                    "--skip-bad"
                ) from error
            left_out[str(error)] += 1
    for reason, count in left_out.most_common():
        print(f"left out: {count} x {reason}")
    for name in sorted(rows):
        texts = [str(row.get(caption_key) or "").strip() for row in rows[name]]
        captions = list(dict.fromkeys(text for text in texts if text))
        fields = {k: v for k, v in rows[name][0].items() if k not in (image_key, caption_key)}
        if len(captions) > 1:
            fields["captions"] = captions
        yield Sample(path=listing.folder / name, name=name, captions=captions, fields=fields)


def _table(path: Path, image_key: str, caption_key: str) -> Table:
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise UsageError(f"--captions {path} must be one of {', '.join(TABLE_SUFFIXES)}")
    opened = Table(path, column=image_key, option="--image-key", key="--captions")
    if caption_key not in opened.columns:
        raise UsageError(
            f"--caption-key = {caption_key} is no column of {path} ({', '.join(opened.columns)})"
        )
    return opened


def _image_of(row: dict[str, Any], image_key: str, images: set[str]) -> str:
    name = Path(str(row.get(image_key))).as_posix()
    if name not in images:
        told = f"{name}; paths count from FOLDER"
        raise SampleError("row names an image that FOLDER has not", detail=told)
    return name


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
                f".{image_extension(sample.name)}": sample.path.read_bytes(),
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
    listing = find_images(args.images)
    if args.captions is None:
        found = samples_beside(listing)
    else:
        found = samples_in_table(
            listing,
            args.captions,
            image_key=args.image_key,
            caption_key=args.caption_key,
            skip_bad=args.skip_bad,
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
