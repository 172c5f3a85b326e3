"""`mmtrain data make` and `split`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.cache_options import add_cache
from mmtrain.cli.parser import Parser, add_command
from mmtrain.data.sources.source import IMAGE_KEY
from mmtrain.settings.numbers import at_least, named_share, num_bytes, part

_SAMPLES_PER_SHARD = 10_000


def add_data_make(actions: Any) -> None:
    """The command that packs what people have into shards."""
    make = add_command(
        actions,
        "make",
        "pack images and captions, of whatever data.train takes, into shards",
        _make,
        epilog=(
            "Images go in byte for byte, a caption into the .txt, all else into the .json. Begun\n"
            "again, the command makes what is missing; the shards are the same, byte for byte,\n"
            "whatever the workers and parts."
        ),
    )
    _add_making(make, "a folder of shards: new, or one that this was begun in")


def add_data_split(actions: Any) -> None:
    """The command that parts a set by its keys."""
    split = add_command(
        actions,
        "split",
        "part a data set by its samples' keys, into shards in a folder for each part",
        _split,
        epilog=(
            "A sample's part is a function of its key: the same in any order, in any subset and\n"
            "in what is added later."
        ),
    )
    _add_making(split, "where the parts' folders go")
    split.add_argument(
        "--fractions",
        nargs="+",
        required=True,
        type=named_share,
        metavar="NAME=X",
        help="parts and their shares, which come to 1: train=0.9 val=0.1",
    )


def _add_making(parser: Parser, out: str) -> None:
    parser.add_argument("data", nargs="+", metavar="SRC", help="what data.train takes")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=out)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--captions",
        nargs="+",
        metavar="NAME",
        help="where captions are: txt, or fields and columns; the first found is the .txt, all are "
        "`captions` of the .json (txt)",
    )
    where.add_argument("--no-captions", action="store_true", help="images alone are enough")
    parser.add_argument(
        "--caption-lines", action="store_true", help="every line of a text is a caption"
    )
    parser.add_argument(
        "--image-key",
        default=IMAGE_KEY,
        metavar="NAME",
        help="column or extension of the image, as data.image_key (%(default)s)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="where a table's paths start (its folder)"
    )
    parser.add_argument(
        "--index-dir", type=Path, metavar="DIR", help="where SRC's indexes are (beside shards)"
    )
    add_cache(parser)
    _add_shards(parser)
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out what cannot be used, and say how many"
    )
    parser.add_argument(
        "--workers", type=at_least(0), default=0, metavar="N", help="processes (%(default)s)"
    )


def _add_shards(parser: Parser) -> None:
    """How large the shards are, in which order, and which of them are made."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--samples-per-shard", type=at_least(1), metavar="N", help=f"({_SAMPLES_PER_SHARD})"
    )
    size.add_argument(
        "--shard-size",
        type=num_bytes,
        metavar="BYTES",
        help="about this much, such as 500MB, reckoned from some of the samples",
    )
    order = parser.add_mutually_exclusive_group()
    order.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="of the order (%(default)s)"
    )
    order.add_argument(
        "--keep-order",
        action="store_true",
        help="as the data have it; training mixes only some shards at a time, so this suits data "
        "that is evaluated",
    )
    parser.add_argument(
        "--shard-range",
        type=part,
        default=(0, 1),
        metavar="I/N",
        help="make one of N shares of the shards, I from 0: for N machines",
    )


def _options(arguments: argparse.Namespace) -> Any:
    from mmtrain.commands.data_make import MakeOptions

    size = arguments.shard_size
    return MakeOptions(
        data=tuple(arguments.data),
        out=arguments.out,
        images=arguments.images,
        image_key=arguments.image_key,
        index_dir=None if arguments.index_dir is None else str(arguments.index_dir),
        captions=() if arguments.no_captions else arguments.captions and tuple(arguments.captions),
        caption_lines=arguments.caption_lines,
        samples_per_shard=arguments.samples_per_shard or (None if size else _SAMPLES_PER_SHARD),
        shard_bytes=size or 0,
        seed=None if arguments.keep_order else arguments.seed,
        skip_bad=arguments.skip_bad,
        part=arguments.shard_range,
        workers=arguments.workers,
    )


def _make(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.data_make import data_make_command

    data_make_command(_options(arguments))


def _split(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.data_make import data_split_command

    data_split_command(_options(arguments), tuple(arguments.fractions))
