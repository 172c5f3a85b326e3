"""`mmtrain ask`, `mmtrain eval vqa`, `mmtrain eval answers` and `mmtrain data vqa`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.model_options import add_model, add_running, model_options
from mmtrain.cli.parser import Parser, add_command
from mmtrain.eval.config import command_of
from mmtrain.eval.evaluators.options import read_options
from mmtrain.eval.evaluators.vqa import (
    IMAGES,
    VqaEvalConfig,
    add_choices,
    add_head,
    add_question_files,
)
from mmtrain.settings.numbers import at_least


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
    ask.add_argument(
        "--answers",
        type=Path,
        metavar="FILE",
        help="choose among its lines: each with how likely it is among them alone",
    )
    add_head(ask)
    ask.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="a .png: the picture, where the model looked, question and answer",
    )
    add_running(ask, image_key=False, batches=False)


def add_eval_vqa(kinds: Any) -> None:
    """The kind of evaluation that asks every question of a set."""
    vqa = add_command(kinds, command_of(VqaEvalConfig), VqaEvalConfig.summary, _eval_vqa)
    add_model(vqa, has_name=False)
    VqaEvalConfig.add_options(vqa)
    _add_mode(vqa)
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
    add_running(vqa)


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
        help="the answers, as the official servers want them: [{image, answer}] of VizWiz, "
        "[{questionId, prediction}] of GQA, [{question_id, answer}] of other sets, or a row a line",
    )
    add_question_files(answers, needed=True)
    add_choices(answers)
    _add_mode(answers)
    answers.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the result, as JSON"
    )


def add_data_vqa(actions: Any) -> None:
    """The action that packs questions and images."""
    pack = add_command(actions, "vqa", "pack a set's images and questions into shards", _data_vqa)
    pack.add_argument("--images", required=True, metavar="DIR", help=IMAGES)
    add_question_files(pack)
    pack.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    pack.add_argument(
        "--per-shard", type=at_least(1), default=1000, metavar="N", help="images (%(default)s)"
    )


def _add_mode(parser: Parser) -> None:
    parser.add_argument(
        "--mode",
        choices=("official", "evalai", "exact"),
        default="official",
        help="how answers are compared where there are several annotators (%(default)s)",
    )


def _ask(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.ask import ask_command

    ask_command(
        model=model_options(arguments),
        image=arguments.image,
        questions=arguments.question,
        answers=arguments.answers,
        head=arguments.head,
        out=arguments.out,
    )


def _eval_vqa(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.vqa import eval_vqa_command

    eval_vqa_command(
        model=model_options(arguments),
        evaluation=read_options(VqaEvalConfig, arguments, name=command_of(VqaEvalConfig)),
        mode=arguments.mode,
        probes=arguments.probes,
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
