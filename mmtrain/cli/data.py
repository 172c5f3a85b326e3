"""`mmtrain data`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command, add_group
from mmtrain.cli.vqa import add_data_vqa


def add_data(commands: Any) -> None:
    """The commands that look after shards."""
    actions = add_group(commands, "data", "index or check shards", metavar="ACTION")
    for name, summary, run in (
        ("index", "write the index of every shard, with a checksum of every file in it", _index),
        ("check", "compare every shard with its index, member by member", _check),
    ):
        action = add_command(actions, name, summary, run)
        action.add_argument("data", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges")
        action.add_argument(
            "--index-dir", type=Path, metavar="DIR", help="where indexes are (beside the shards)"
        )
    add_data_vqa(actions)


def _index(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.data import data_index_command

    data_index_command(data=tuple(arguments.data), index_dir=arguments.index_dir)


def _check(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.data import data_check_command

    data_check_command(data=tuple(arguments.data), index_dir=arguments.index_dir)
