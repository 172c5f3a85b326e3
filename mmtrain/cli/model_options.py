"""What every command takes that runs a model over a data set."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.cache_options import add_cache
from mmtrain.cli.parser import Parser, add_device
from mmtrain.data.sources.source import IMAGE_KEY
from mmtrain.data.storage.patience import PATIENCE
from mmtrain.interop.forms import weight_names
from mmtrain.settings.numbers import at_least, seconds

HUB = "or hf://OWNER/NAME[@REVISION] or open_clip:NAME/TAG, fetched from Hugging Face's hub"
"""How --help names models that are not here."""
_RUNNING = (
    "architecture",
    "batch_size",
    "fast",
    "workers",
    "retry_seconds",
    "device",
    "precision",
    "quiet",
)


def add_architecture(parser: Parser) -> None:
    """--architecture."""
    parser.add_argument(
        "--architecture",
        metavar="NAME",
        help="of a file of weights that says none, such as ViT-B-32 (mmtrain models lists them)",
    )


def add_model(parser: Parser, *, has_name: bool = True) -> None:
    """--model, and --architecture where it may be one that has a name."""
    if has_name:
        add_architecture(parser)
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help=f"a run, an export, a model in another tool's form, {HUB}",
    )


def add_weights(parser: Parser) -> None:
    """--weights, beside a --format that may be one of graphs."""
    parser.add_argument(
        "--weights",
        choices=weight_names(),
        help="of the graphs of --format onnx: fp16 and int8 make smaller files (fp32)",
    )


def add_quiet(parser: Parser) -> None:
    """--quiet, of commands whose result is a file."""
    parser.add_argument(
        "--quiet", action="store_true", help="say nothing of what goes well; the files have it"
    )


def add_running(parser: Parser, *, image_key: bool = True, batches: bool = True) -> None:
    """How images are read and the model is run.

    Args:
        parser: the command's.
        image_key: whether the data may be a manifest or a saved data set.
        batches: whether there is more than one batch to read.
    """
    if image_key:
        parser.add_argument(
            "--image-key",
            default=IMAGE_KEY,
            metavar="NAME",
            help="column of the images in a manifest or a saved data set (%(default)s)",
        )
    if batches:
        parser.add_argument(
            "--batch-size",
            type=at_least(1),
            metavar="N",
            help="samples a forward with --fast (256); else they are 64",
        )
        parser.add_argument(
            "--fast",
            action="store_true",
            help="forwards of --batch-size samples, on which the last digits then depend; without, "
            "a result is the same to the bit whatever batch size, ranks and workers",
        )
        parser.add_argument(
            "--workers",
            type=at_least(0),
            default=0,
            metavar="N",
            help="processes that read and decode; 0: this one (%(default)s)",
        )
        parser.add_argument(
            "--retry-seconds",
            type=seconds,
            default=PATIENCE,
            metavar="N",
            help="how long a fault of the disk is given to pass (%(default)g)",
        )
        add_cache(parser)
        add_quiet(parser)
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "tf32"),
        default="fp32",
        help="of the forward passes; tf32 is of GPUs (%(default)s)",
    )
    add_device(parser)


def model_options(arguments: argparse.Namespace) -> Any:
    """What `add_model` and `add_running` were given."""
    return running_options(arguments, path=arguments.model)


def running_options(arguments: argparse.Namespace, *, path: Path = Path()) -> Any:
    """What `add_running` was given.

    Args:
        arguments: the command's.
        path: of the model, where there is one.
    """
    from mmtrain.commands.evaluate import ModelOptions

    # A command of a single picture has no batches.
    given = {name: value for name, value in vars(arguments).items() if name in _RUNNING}
    return ModelOptions(path=path, **given)
