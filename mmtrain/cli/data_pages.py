"""`mmtrain data view` and `stats`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.cache_options import add_cache
from mmtrain.cli.parser import Parser, add_command
from mmtrain.data.sources.source import IMAGE_KEY
from mmtrain.settings.numbers import at_least, part


def add_data_view(actions: Any) -> None:
    """The command that writes a sheet of samples."""
    view = add_command(
        actions,
        "view",
        "write a page of samples: images, captions, keys",
        _view,
        epilog=(
            "--where NAME OP VALUE, OP one of = != ~ < > <= >=, where ~ is 'contains'; NAME is\n"
            "txt (the captions), key, bad (why it cannot be used), image.width, image.height,\n"
            "image.aspect, image.bytes, image.kind, or a field of the .json:\n"
            "  --where concept=dog --where 'image.width>=512' --where 'txt~at night'"
        ),
    )
    add_looked_at(view)
    view.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="the page")
    view.add_argument(
        "--num", type=at_least(1), default=100, metavar="N", help="samples at most (%(default)s)"
    )
    view.add_argument(
        "--seed", type=at_least(0), default=0, metavar="N", help="of the draw (%(default)s)"
    )
    view.add_argument("--key", nargs="+", default=[], metavar="GLOB", help="keys that are meant")
    view.add_argument(
        "--where", action="append", default=[], metavar="COND", help="what must hold, see below"
    )
    view.add_argument("--bad", action="store_true", help="only samples that cannot be used")
    view.add_argument(
        "--shard-range",
        type=part,
        metavar="I/N",
        help="look among one of N shares of the shards, I from 0: N machines search at once",
    )


def add_data_stats(actions: Any) -> None:
    """The command that tells what data are like."""
    stats = add_command(
        actions,
        "stats",
        "tell sizes, captions, scripts, duplicates and bad samples, on a page and as JSON",
        _stats,
        epilog=(
            "Several machines look at a share of the shards each (--shard-range) and keep it in a\n"
            "folder (--parts); then one makes page and figures of these (--merge), the same as of\n"
            "a single run. Where shards have no index, every machine reads them all for one:\n"
            "mmtrain data index first."
        ),
    )
    add_looked_at(stats)
    stats.add_argument("--out", type=Path, metavar="FILE.html", help="the page")
    stats.add_argument("--json", type=Path, metavar="FILE.json", help="the figures")
    stats.add_argument(
        "--num", type=at_least(1), metavar="N", help="look at N samples, drawn by chance (all)"
    )
    stats.add_argument("--seed", type=at_least(0), metavar="N", help="of the draw, with --num (0)")
    stats.add_argument("--label-key", metavar="NAME", help="count the labels in this field")
    stats.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FILE",
        help="a .model or tokenizer.json that counts tokens (CLIP's)",
    )
    stats.add_argument(
        "--context-length",
        type=at_least(3),
        metavar="N",
        help="tokens that a model keeps, to tell how many captions are cut (77)",
    )
    stats.add_argument("--workers", type=at_least(0), metavar="N", help="processes (0)")
    which = stats.add_mutually_exclusive_group()
    which.add_argument(
        "--shard-range",
        type=part,
        metavar="I/N",
        help="look at one of N shares of the shards, I from 0, into --parts: for N machines",
    )
    which.add_argument(
        "--merge", action="store_true", help="look at nothing; the figures of all shares in --parts"
    )
    stats.add_argument("--parts", type=Path, metavar="DIR", help="the folder of the shares")


def add_looked_at(parser: Parser) -> None:
    """The data that a command looks at, as check takes them."""
    parser.add_argument("data", nargs="+", metavar="DATA", help="what data.train takes")
    parser.add_argument(
        "--index-dir", type=Path, metavar="DIR", help="where indexes are (beside the shards)"
    )
    add_cache(parser)
    parser.add_argument(
        "--image-key",
        default=IMAGE_KEY,
        metavar="NAME",
        help="column or extension of the image, as data.image_key (%(default)s)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--captions",
        nargs="+",
        metavar="NAME",
        help="where captions are: txt for the .txt member, else a field of the .json (txt)",
    )
    where.add_argument("--no-captions", action="store_true", help="images alone are enough")
    parser.add_argument(
        "--caption-lines", action="store_true", help="every line of a text is a caption"
    )


def data_options(arguments: argparse.Namespace) -> Any:
    """The data that a command was given."""
    from mmtrain.commands.data_pages import DataOptions

    return DataOptions(
        data=tuple(arguments.data),
        image_key=arguments.image_key,
        index_dir=None if arguments.index_dir is None else str(arguments.index_dir),
        captions=() if arguments.no_captions else arguments.captions and tuple(arguments.captions),
        caption_lines=arguments.caption_lines,
    )


def _view(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.data_pages import data_view_command

    data_view_command(
        data_options(arguments),
        out=arguments.out,
        num=arguments.num,
        seed=arguments.seed,
        keys=tuple(arguments.key),
        where=tuple(arguments.where),
        only_bad=arguments.bad,
        part=arguments.shard_range,
    )


def stats_options(arguments: argparse.Namespace) -> Any:
    """What `stats` was given beside the data."""
    from mmtrain.commands.data_stats import StatsOptions

    return StatsOptions(
        out=arguments.out,
        json_out=arguments.json,
        num=arguments.num,
        seed=arguments.seed,
        label_key=arguments.label_key,
        tokenizer=arguments.tokenizer,
        context_length=arguments.context_length,
        workers=arguments.workers,
        part=arguments.shard_range,
        merge=arguments.merge,
        parts=arguments.parts,
    )


def _stats(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.data_stats import data_stats_command

    data_stats_command(data_options(arguments), stats_options(arguments))
