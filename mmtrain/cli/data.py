"""`mmtrain data`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.cache_options import add_cache
from mmtrain.cli.data_loading import (
    add_data_bench,
    add_data_labels,
    add_data_quarantine,
    add_data_show,
)
from mmtrain.cli.data_making import add_data_make, add_data_split
from mmtrain.cli.data_pages import add_data_stats, add_data_view
from mmtrain.cli.model_options import add_quiet
from mmtrain.cli.parser import Parser, add_command, add_group
from mmtrain.cli.vqa import add_data_vqa
from mmtrain.data.sources.source import IMAGE_KEY
from mmtrain.eval.evaluators.vqa import add_question_files
from mmtrain.settings.numbers import WHOLE, at_least, part


def add_data(commands: Any) -> None:
    """The commands that look after data."""
    actions = add_group(
        commands, "data", "make, index, check, look at or split data", metavar="ACTION"
    )
    index = add_command(
        actions,
        "index",
        "index shards, with a checksum of every file, in one catalogue a folder",
        _index,
        epilog="Each shard's index is kept (X.tar.index), then all are joined: interrupted, the "
        "same command with --trust goes on where it was. Several machines index a share each "
        "(--shard-range), one joins them (--merge).",
    )
    index.add_argument("data", nargs="+", metavar="SHARDS", help="tars, globs, ranges, s3://...")
    _add_index_dir(index)
    add_cache(index)
    index.add_argument(
        "--trust",
        action="store_true",
        help="do not read shards again whose size and some pieces are those of their checksums",
    )
    which = index.add_mutually_exclusive_group()
    which.add_argument(
        "--shard-range",
        type=part,
        default=WHOLE,
        metavar="I/N",
        help="index one of N shares of the shards, I from 0, and join none: for N machines",
    )
    which.add_argument(
        "--merge",
        action="store_true",
        help="read no shard; write the catalogue of indexes that are there",
    )
    index.add_argument(
        "--workers",
        type=at_least(1),
        metavar="N",
        help="processes that index (as many as processors, up to 8)",
    )
    add_quiet(index)
    _add_check(actions)
    add_data_make(actions)
    add_data_split(actions)
    add_data_view(actions)
    add_data_stats(actions)
    add_data_show(actions)
    add_data_labels(actions)
    add_data_bench(actions)
    add_data_quarantine(actions)
    add_data_vqa(actions)


def _add_check(actions: Any) -> None:
    check = add_command(
        actions,
        "check",
        "compare shards with their index, and read every sample as a training would",
        _check,
        epilog="Exit status 1: samples would not be used. 2: a mistake, or damage.",
    )
    check.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help="shards, or whatever else data.train takes; with --questions the folder of images",
    )
    _add_index_dir(check)
    add_cache(check)
    where = check.add_mutually_exclusive_group()
    where.add_argument(
        "--captions",
        nargs="+",
        metavar="NAME",
        help="where captions are: txt for the .txt member, else a field of the .json (txt)",
    )
    where.add_argument("--no-captions", action="store_true", help="images alone are enough")
    check.add_argument(
        "--image-key",
        default=IMAGE_KEY,
        metavar="NAME",
        help="column or extension of the image, as data.image_key (%(default)s)",
    )
    check.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="of dialogues: where relative paths of images start (the file's folder), as "
        "vqa.dialogues.images",
    )
    add_question_files(check)
    check.add_argument(
        "--min-count",
        type=at_least(1),
        metavar="N",
        help="of questions: count those whose answers are all rarer, as vqa.min_count",
    )
    check.add_argument("--label-key", metavar="NAME", help="count the samples with this label")
    check.add_argument(
        "--workers", type=at_least(0), default=0, metavar="N", help="processes that read (0)"
    )
    check.add_argument(
        "--shard-range",
        type=part,
        default=WHOLE,
        metavar="I/N",
        help="check one of N shares of the shards, I from 0: for N machines",
    )


def _add_index_dir(action: Parser) -> None:
    action.add_argument(
        "--index-dir", type=Path, metavar="DIR", help="where indexes are (beside the shards)"
    )


def _index(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.data import data_index_command

    data_index_command(
        data=tuple(arguments.data),
        index_dir=arguments.index_dir,
        trust=arguments.trust,
        part=arguments.shard_range,
        merge=arguments.merge,
        workers=arguments.workers,
        quiet=arguments.quiet,
    )


def _captions(arguments: argparse.Namespace) -> tuple[str, ...] | None:
    """Where captions are; None: nobody said."""
    return () if arguments.no_captions else arguments.captions and tuple(arguments.captions)


def check_options(arguments: argparse.Namespace) -> Any:
    """What `check` was given."""
    from mmtrain.commands.data import CheckOptions
    from mmtrain.commands.data_questions import QuestionOptions

    return CheckOptions(
        data=tuple(arguments.data),
        index_dir=arguments.index_dir,
        image_key=arguments.image_key,
        images=arguments.images,
        captions=_captions(arguments),
        questions=QuestionOptions(
            questions=arguments.questions,
            annotations=arguments.annotations,
            min_count=arguments.min_count,
        ),
        label_key=arguments.label_key,
        workers=arguments.workers,
        part=arguments.shard_range,
    )


def _check(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.data import data_check_command

    data_check_command(check_options(arguments))
