"""`mmtrain eval`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.model_options import add_data, add_model, add_running, model_options
from mmtrain.cli.parser import Parser, add_command, add_group, at_least, positive
from mmtrain.cli.vqa import add_eval_answers, add_eval_vqa


def add_eval(commands: Any) -> None:
    """The commands that evaluate."""
    kinds = add_group(commands, "eval", "evaluate a model", metavar="KIND")
    _add_zero_shot(kinds)
    _add_retrieval(kinds)
    _add_linear_probe(kinds)
    _add_knn(kinds)
    add_eval_vqa(kinds)
    add_eval_answers(kinds)


def _add_zero_shot(kinds: Any) -> None:
    zero_shot = add_command(
        kinds, "zero-shot", "classify images by the names of their classes", _zero_shot
    )
    add_model(zero_shot)
    add_data(zero_shot, "--data")
    _add_classes(zero_shot)
    zero_shot.add_argument(
        "--templates",
        metavar="NAME|FILE",
        help="prompts: name, simple, imagenet, or a file with one a line (the data's own, or name)",
    )
    _add_result(zero_shot)


def _add_retrieval(kinds: Any) -> None:
    retrieval = add_command(
        kinds, "retrieval", "find captions by image and images by caption", _retrieval
    )
    add_model(retrieval)
    add_data(retrieval, "--data")
    retrieval.add_argument(
        "--captions",
        nargs="+",
        default=["txt"],
        metavar="NAME",
        help="where captions are: txt for the .txt member, else a field of the .json (txt)",
    )
    lines = retrieval.add_mutually_exclusive_group()
    lines.add_argument(
        "--caption-lines",
        action="store_true",
        default=None,
        help="every line of a text is a caption, as in CLIP benchmark's shards",
    )
    lines.add_argument(
        "--one-caption",
        dest="caption_lines",
        action="store_false",
        default=None,
        help="a text of several lines is one caption (it is refused)",
    )
    _add_result(retrieval)


def _add_linear_probe(kinds: Any) -> None:
    probe = add_command(
        kinds, "linear-probe", "fit a linear classifier to the image features", _linear_probe
    )
    add_model(probe)
    add_data(probe, "--train")
    add_data(probe, "--test")
    add_data(probe, "--validation", required=False)
    _add_classes(probe)
    probe.add_argument(
        "--strengths",
        nargs="+",
        type=positive,
        metavar="C",
        help="values of C, scikit-learn's, to choose among; one is taken as it is (a search)",
    )
    _add_result(probe)


def _add_knn(kinds: Any) -> None:
    knn = add_command(kinds, "knn", "classify images by their nearest training images", _knn)
    add_model(knn)
    add_data(knn, "--train")
    add_data(knn, "--test")
    _add_classes(knn)
    knn.add_argument(
        "--neighbours", type=at_least(1), default=20, metavar="K", help="voters (%(default)s)"
    )
    weights = knn.add_mutually_exclusive_group()
    weights.add_argument(
        "--temperature",
        type=positive,
        default=0.07,
        metavar="T",
        help="a vote weighs exp(cosine / T) (%(default)s)",
    )
    weights.add_argument("--equal-votes", action="store_true", help="all votes weigh the same")
    _add_result(knn)


def _add_classes(parser: Parser) -> None:
    parser.add_argument(
        "--classes",
        metavar="NAME|FILE",
        help='imagenet, or a JSON list of {"id", "name"} or of names whose ids are their places '
        "from 0, or a .txt of names; shards need it, other layouts name their classes themselves",
    )
    parser.add_argument(
        "--label-key",
        metavar="KEY",
        help="shards: the member, such as cls, or field of the .json with the class id (concept)",
    )
    parser.add_argument("--per-class", action="store_true", help="list every class's accuracy too")


def _add_result(parser: Parser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="where the result goes, as JSON"
    )
    add_running(parser)


def _labelled(arguments: argparse.Namespace, *names: str) -> Any:
    from mmtrain.commands.evaluate import LabelledOptions

    given = {name: getattr(arguments, name) for name in names}
    return LabelledOptions(
        sets={name: tuple(data) for name, data in given.items() if data is not None},
        classes=arguments.classes,
        label_key=arguments.label_key,
        image_key=arguments.image_key,
        per_class=arguments.per_class,
    )


def _zero_shot(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.evaluate import eval_zero_shot_command

    eval_zero_shot_command(
        model=model_options(arguments),
        labelled=_labelled(arguments, "data"),
        templates=arguments.templates,
        out=arguments.out,
    )


def _linear_probe(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.evaluate import eval_linear_probe_command

    strengths = arguments.strengths
    eval_linear_probe_command(
        model=model_options(arguments),
        labelled=_labelled(arguments, "train", "test", "validation"),
        strengths=None if strengths is None else tuple(strengths),
        out=arguments.out,
    )


def _knn(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.evaluate import eval_knn_command

    eval_knn_command(
        model=model_options(arguments),
        labelled=_labelled(arguments, "train", "test"),
        neighbours=arguments.neighbours,
        temperature=None if arguments.equal_votes else arguments.temperature,
        out=arguments.out,
    )


def _retrieval(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.evaluate import eval_retrieval_command

    eval_retrieval_command(
        model=model_options(arguments),
        data=tuple(arguments.data),
        captions=tuple(arguments.captions),
        caption_lines=arguments.caption_lines,
        image_key=arguments.image_key,
        out=arguments.out,
    )
