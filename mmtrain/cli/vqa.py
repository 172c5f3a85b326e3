"""`mmtrain ask`, `mmtrain eval vqa`, `mmtrain eval answers` and `mmtrain data vqa`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.model_options import add_model, add_running, model_options
from mmtrain.cli.parser import Parser, add_command, at_least

_IMAGES = "the folder of images; without --questions, easy_vqa:test or shards of `data vqa`"


def add_ask(commands: Any) -> None:
    """The command that asks about one picture."""
    ask = add_command(commands, "ask", "ask a model about a picture", _ask)
    add_model(ask, has_name=False)
    ask.add_argument("--image", type=Path, required=True, metavar="FILE", help="JPEG, PNG, WebP")
    ask.add_argument(
        "--question",
        action="append",
        required=True,
        metavar="TEXT",
        help="what is asked; may be given several times",
    )
    _add_head(ask)
    ask.add_argument(
        "--out", type=Path, metavar="FILE", help="a .png of the picture, dark where nobody looked"
    )
    add_running(ask, image_key=False, batches=False)


def add_eval_vqa(kinds: Any) -> None:
    """The kind of evaluation that asks every question of a set."""
    vqa = add_command(kinds, "vqa", "ask every question of a set", _eval_vqa)
    add_model(vqa, has_name=False)
    vqa.add_argument("--data", nargs="+", required=True, metavar="DATA", help=_IMAGES)
    _add_files(vqa)
    _add_head(vqa)
    _add_comparing(vqa)
    vqa.add_argument(
        "--probes", action="store_true", help="also ask without the image, and without the question"
    )
    vqa.add_argument(
        "--predictions", type=Path, metavar="FILE", help="the answers, as the official servers want"
    )
    vqa.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the result, as JSON; with --predictions it may be left out",
    )
    add_running(vqa, image_key=False)


def add_eval_answers(kinds: Any) -> None:
    """The kind of evaluation that needs no model."""
    answers = add_command(
        kinds, "answers", "judge a file of answers, whoever gave them", _eval_answers
    )
    answers.add_argument(
        "--predictions",
        type=Path,
        required=True,
        metavar="FILE",
        help="the answers, as the official servers want them: [{question_id, answer}] of VQAv2 and "
        "easy-VQA, [{image, answer}] of VizWiz, [{questionId, prediction}] of GQA",
    )
    _add_files(answers, needed=True)
    _add_comparing(answers)
    answers.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the result, as JSON"
    )


def add_data_vqa(actions: Any) -> None:
    """The action that packs questions and images."""
    pack = add_command(actions, "vqa", "pack a set's images and questions into shards", _data_vqa)
    pack.add_argument("--images", required=True, metavar="DIR", help=_IMAGES)
    _add_files(pack)
    pack.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    pack.add_argument(
        "--per-shard", type=at_least(1), default=1000, metavar="N", help="images (%(default)s)"
    )


def _add_comparing(parser: Parser) -> None:
    parser.add_argument(
        "--choices",
        type=Path,
        metavar="FILE",
        help="GQA's choices, for validity and plausibility",
    )
    parser.add_argument(
        "--mode",
        choices=("official", "evalai", "exact"),
        default="official",
        help="how answers are compared where there are several annotators (%(default)s)",
    )


def _add_files(parser: Parser, *, needed: bool = False) -> None:
    of_package = ", or easy_vqa:test" if needed else ""
    parser.add_argument(
        "--questions",
        required=needed,
        metavar="FILE",
        help=f"questions of VQAv2, VizWiz, GQA or easy-VQA{of_package}",
    )
    parser.add_argument("--annotations", metavar="FILE", help="VQAv2's file of answers")


def _add_head(parser: Parser) -> None:
    parser.add_argument(
        "--head",
        choices=("classify", "generate"),
        help="choose among known answers or write one (what the model has)",
    )


def _ask(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.vqa import ask_command

    ask_command(
        model=model_options(arguments),
        image=arguments.image,
        questions=arguments.question,
        head=arguments.head,
        out=arguments.out,
    )


def _eval_vqa(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.vqa import eval_vqa_command

    eval_vqa_command(
        model=model_options(arguments),
        data=tuple(arguments.data),
        questions=arguments.questions,
        annotations=arguments.annotations,
        head=arguments.head,
        mode=arguments.mode,
        probes=arguments.probes,
        choices=arguments.choices,
        predictions=arguments.predictions,
        out=arguments.out,
    )


def _eval_answers(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.answers import eval_answers_command

    eval_answers_command(
        predictions=arguments.predictions,
        questions=arguments.questions,
        annotations=arguments.annotations,
        choices=arguments.choices,
        mode=arguments.mode,
        out=arguments.out,
    )


def _data_vqa(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.vqa import data_vqa_command

    data_vqa_command(
        images=arguments.images,
        questions=arguments.questions,
        annotations=arguments.annotations,
        out=arguments.out,
        per_shard=arguments.per_shard,
    )
