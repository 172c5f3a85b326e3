"""`mmtrain eval answers`: the figures of a file of answers, without a model and without torch."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmtrain
from mmtrain.commands.outputs import refuse_overwriting
from mmtrain.data.questions.forms import QuestionFile, named_split, read_question_file
from mmtrain.data.questions.predictions import read_predictions
from mmtrain.errors import UsageError
from mmtrain.eval.outcomes import write_outcomes
from mmtrain.eval.questions.accuracy import Mode
from mmtrain.eval.questions.figures import answer_outcomes, image_counts, vqa_figures
from mmtrain.eval.questions.gqa import read_choices
from mmtrain.files import replace_file

EASY_VQA = "easy_vqa:"
_COUNTS = {
    "num_unread": "answers that name no option, which are wrong",
    "num_without_image": "questions about no image; a model sees a black one",
    "num_cut": "questions longer than the model reads: their ends are cut",
    "num_answers_cut": "answers that came to their greatest length and did not end",
}


def eval_answers_command(
    *,
    predictions: Path,
    questions: str,
    annotations: str | None,
    choices: Path | None,
    mode: Mode,
    out: Path,
) -> None:
    """Judge the answers in `predictions`, whoever gave them."""
    if out.suffix != ".json":
        raise UsageError(f"out = {out} must end in .json")
    question_file = named_split(questions)[0]
    refuse_overwriting((predictions, question_file, annotations, choices), {"out": out})
    asked = _read(questions, annotations)
    said = read_predictions(predictions, [question for _, question in asked.rows])
    figures = vqa_figures(said, mode, choices=None if choices is None else read_choices(choices))
    images = {question.question_id: str(image_id) for image_id, question in asked.rows}
    figures |= image_counts([images[one.question.question_id] for one in said], said)
    files = {"predictions": predictions, "questions": question_file, "annotations": annotations}
    files["choices"] = choices
    figures["provenance"] = {
        "files": {
            name: {"path": str(file), "sha256": _sha256(Path(file))}
            for name, file in files.items()
            if file is not None and Path(file).is_file()
        },
        "versions": {"mmtrain": mmtrain.__version__},
    }
    show_figures(figures)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
        of_each = [images[one.question.question_id] for one in said]
        write_outcomes(out, answer_outcomes(said, mode, images=of_each))
    except OSError as error:
        raise UsageError(f"out = {out} cannot be written: {error}") from error
    print(f"wrote {out}")


def show_figures(figures: dict[str, Any], say: Callable[[str], None] = print) -> None:
    """Print them, as `eval vqa` and `eval answers` do."""
    for key, value in figures.items():
        if key == "gqa_distribution":
            say(f"{key:24} {value:.2f} (lower is better)")
        elif isinstance(value, float):
            say(f"{key:24} {value:.2%}")
    names = ["per_answer_type", "per_question_type"]
    if "per_category" in figures:  # which has the accuracy, too
        names.remove("per_question_type")
    for name in (*names, "per_subject", "per_context", "per_grade"):
        for kind, value in figures.get(name, {}).items():
            say(f"  {kind:22} {value:.2%}")
    for category, own in figures.get("per_category", {}).items():
        told = ", ".join(f"{name} {value:.2%}" for name, value in own.items())
        say(f"  {category:22} {told}")
    for name, why in figures.get("left_out", {}).items():
        say(f"{name:24} left out: {why}")
    for name, told in _COUNTS.items():
        if figures.get(name):
            say(f"{name:24} {figures[name]:,} ({told})")
    say(f"{'num_questions':24} {figures['num_questions']:,}")


def _read(questions: str, annotations: str | None) -> QuestionFile:
    if not questions.startswith(EASY_VQA):
        return read_question_file(questions, annotations)
    if annotations is not None:
        raise UsageError(f"questions = {questions} brings its answers; leave annotations out")
    from mmtrain.data.questions.files import read_questions  # torch, which draws the part `val`

    images = read_questions(questions, None, None)
    return QuestionFile(rows=[(one.image_id, q) for one in images for q in one.questions])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
