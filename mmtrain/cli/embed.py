"""`mmtrain embed`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.model_options import add_model, add_running, model_options
from mmtrain.cli.parser import add_command
from mmtrain.eval.evaluators.options import add_data
from mmtrain.settings.numbers import WHOLE, at_least, fraction, part


def add_embed(commands: Any) -> None:
    """The command that writes features."""
    embed = add_command(
        commands, "embed", "write the features of all images of a data set, to search them", _embed
    )
    add_model(embed)
    add_data(embed, "--data")
    embed.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="a new folder, or one that this job was begun in: it goes on there",
    )
    embed.add_argument(
        "--format",
        choices=("npy", "parquet"),
        default="npy",
        help="numpy's files with the keys beside them, or Parquet (%(default)s)",
    )
    embed.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        default="float16",
        help="of the features (%(default)s)",
    )
    embed.add_argument(
        "--piece",
        type=at_least(1),
        default=1 << 16,
        metavar="N",
        help="samples of a file, which is what an interruption loses (%(default)s)",
    )
    embed.add_argument(
        "--max-bad-fraction",
        type=fraction,
        default=0.01,
        metavar="X",
        help="how many samples of a piece may be unusable; they have no row (%(default)s)",
    )
    embed.add_argument(
        "--shard-range",
        type=part,
        default=WHOLE,
        metavar="I/N",
        help="embed one of N shares of the files, I from 0, for N machines with one DIR; then the "
        "same command without it ends the folder",
    )
    add_running(embed)


def embed_options(arguments: argparse.Namespace) -> Any:
    """What the command was given."""
    from mmtrain.commands.evaluate import EmbedOptions

    return EmbedOptions(
        model=model_options(arguments),
        data=tuple(arguments.data),
        image_key=arguments.image_key,
        out=arguments.out,
        form=arguments.format,
        dtype=arguments.dtype,
        piece=arguments.piece,
        max_bad_fraction=arguments.max_bad_fraction,
        part=arguments.shard_range,
    )


def _embed(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.evaluate import embed_command

    embed_command(embed_options(arguments))
