"""`mmtrain eval vqa`, `ask` and `data vqa`: questions to a model, and questions into shards."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mmtrain.commands.answers import show_figures
from mmtrain.commands.evaluate import ModelOptions, join_ranks, refuse_out
from mmtrain.commands.outputs import refuse_overwriting
from mmtrain.data.questions.predictions import write_predictions
from mmtrain.data.questions.question import Said
from mmtrain.data.questions.source import known_questions, open_questions, refuse_unanswered
from mmtrain.data.storage.patience import waiting
from mmtrain.errors import UsageError
from mmtrain.eval.evaluators.options import option_words
from mmtrain.eval.evaluators.vqa import VqaEvalConfig
from mmtrain.eval.questions.accuracy import Mode
from mmtrain.eval.questions.answerer import Answerer, Choose
from mmtrain.eval.questions.answering import Answered, answer_all, refuse_unaskable
from mmtrain.eval.questions.choosing import refuse_no_options
from mmtrain.eval.questions.figures import check_judged
from mmtrain.eval.questions.result import PROBES, evaluate_vqa
from mmtrain.eval.result import write_result
from mmtrain.files import writing
from mmtrain.loading.hub_models import model_folder
from mmtrain.loading.vqa import load_vqa
from mmtrain.models.vqa import Head
from mmtrain.parallel.mesh import Layout, leave_ranks
from mmtrain.progress import speaker
from mmtrain.ranks import on_every_rank
from mmtrain.settings.counted import counted


def build_answerer(
    model: ModelOptions,
    head: Head | None = None,
    choose: Choose | None = None,
    *,
    layout: Layout | None = None,
) -> Answerer:
    """The model, on the device and the ranks that it runs on.

    Args:
        model: which, and how it is run.
        head: as of the answerer.
        choose: as of the answerer.
        layout: of the ranks, where they have met already.
    """
    layout = layout or join_ranks(model)
    saved = load_vqa(model_folder(model.path, key="model"), device=layout.device)
    return Answerer(
        model=saved.model,
        tokenizer=saved.tokenizer,
        preprocess=saved.preprocess,
        vocabulary=saved.vocabulary,
        answer_length=saved.answer_length,
        head=head,
        choose=choose,
        device=layout.device,
        precision=model.precision,
        batch_size=model.forward_size,
        workers=model.workers,
        group=layout.group("dp"),
    )


def eval_vqa_command(
    *,
    model: ModelOptions,
    evaluation: VqaEvalConfig,
    mode: Mode,
    probes: bool,
    predictions: Path | None,
    out: Path | None,
) -> None:
    """`mmtrain eval vqa`, alone or under torchrun.

    Every question is asked once, whatever is written of it. A set without answers, as official
    servers keep theirs, gives predictions and no figures.
    """
    _refuse_outputs(predictions, out, probes=probes, choices=evaluation.choices)
    refuse_overwriting(option_words(evaluation), {"predictions": predictions, "out": out})
    layout, say = join_ranks(model), speaker(model.quiet)
    with waiting(model.retry_seconds), model.progress() as progress:
        source, choices = on_every_rank(evaluation.open)
        known = known_questions(source)
        if predictions is None:
            refuse_unanswered(source)
        if any(question.answers for question in known) and out is not None:
            check_judged(known, mode, choices=choices)
        if known and evaluation.choose is not None:
            refuse_no_options(known, evaluation.choose)
        build = partial(build_answerer, model, evaluation.head, evaluation.choose, layout=layout)
        answerer = on_every_rank(build)
        refuse_unaskable(answerer, known)
        answerer = replace(answerer, progress=progress)
        answered = answer_all(answerer, source)
        unwritten = _write_predictions(answerer, predictions, answered, say)
        if predictions is not None and not any(one.question.answers for one in answered):
            if answerer.is_main:
                told = "" if out is None else f"; {out} is not written"
                print(f"the set has no answers to compare with, so there are no figures{told}")
        elif out is not None:
            result = evaluate_vqa(
                answerer,
                source,
                mode=mode,
                probes=PROBES if probes else (),
                choices=choices,
                answered=answered,
            )
            if answerer.is_main:
                show_figures(result.figures, say)
                write_result(out, model.recorded(result))
                say(f"wrote {out}")
    leave_ranks()
    if unwritten is not None:
        raise unwritten


def _write_predictions(
    answerer: Answerer, path: Path | None, answered: Sequence[Answered], say: Callable[[str], None]
) -> UsageError | None:
    """On the main rank -> what went wrong: the figures of the same answers come before its end."""
    if path is None or not answerer.is_main:
        return None
    try:
        write_predictions(path, answered)
    except UsageError as error:
        return error
    say(f"wrote {path}{_told_cut(answered)}")
    return None


def _refuse_outputs(
    predictions: Path | None, out: Path | None, *, probes: bool, choices: str | None
) -> None:
    """Before anything is computed for them."""
    if out is None and predictions is None:
        raise UsageError("name --out, for the figures, or --predictions, for the answers")
    if out is not None:
        refuse_out(out)
    for option, given in (("--probes", probes), ("--choices", choices is not None)):
        if given and out is None:
            raise UsageError(
                f"{option} has no effect without --out; name it, or leave {option} out"
            )


def _told_cut(answered: Sequence[Said]) -> str:
    """What official forms have no place for."""
    cut = sum(one.is_cut for one in answered)
    of = f"{cut:,} of {counted(len(answered), 'answer')}"
    return f"; {of} are cut off at their greatest length, which the file cannot say" if cut else ""


def data_vqa_command(
    *, images: str, questions: str | None, annotations: str | None, out: Path, per_shard: int
) -> None:
    """`mmtrain data vqa`: a set's images with their questions as shards."""
    source = open_questions(images, questions=questions, annotations=annotations, key="images")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise UsageError(f"out = {out} holds something already; name a new folder")
    for first in range(0, source.num_samples, per_shard):
        path = out / f"{first // per_shard:05d}.tar"
        with writing(path), tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as shard:
            for sample in range(first, min(first + per_shard, source.num_samples)):
                for extension, data in source.read(sample).items():
                    entry = tarfile.TarInfo(f"{sample:09d}.{extension}")
                    entry.size = len(data)
                    shard.addfile(entry, io.BytesIO(data))
    print(json.dumps({"shards": str(out), "images": source.num_samples}))
