"""Composes a recipe with a [vqa] section into a run."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from mmtrain.build.answering_start import build_started_model, vqa_notes
from mmtrain.build.compose import (
    Run,
    adapt_model,
    build_preprocess,
    build_state,
    use_deterministic_kernels,
)
from mmtrain.build.idle import idle_notes, refuse_idle
from mmtrain.build.memory import check_memory
from mmtrain.checkpoint.background_save import BackgroundSave
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.questions.answers import (
    AnswerVocabulary,
    build_vocabulary,
    ceiling,
    every_question,
)
from mmtrain.data.questions.batches import VqaData
from mmtrain.data.questions.question import Question
from mmtrain.data.questions.source import open_questions, refuse_unanswered
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.eval.config import EVALUATORS
from mmtrain.eval.evaluators.vqa import VqaEvalConfig
from mmtrain.eval.questions.answering import Answerer
from mmtrain.eval.scheduled import check_evaluation, command_words, run_evaluation
from mmtrain.loading.start import read_start
from mmtrain.loading.vqa import VqaModel, load_vqa, save_vqa
from mmtrain.losses.config import LossConfig
from mmtrain.models.parameters import lock_tower, parameter_names
from mmtrain.models.vqa import Vqa
from mmtrain.parallel import Layout, parallelize
from mmtrain.peft import LoraDropout, baked, count_parameters
from mmtrain.ranks import is_alone
from mmtrain.recipe import TrainRecipe, resolve, run_tokenizer
from mmtrain.report import write_report
from mmtrain.tasks.answering import answer_objective
from mmtrain.tasks.config import VqaSection
from mmtrain.tasks.dictionaries import fill_dictionaries
from mmtrain.train.config import total_steps
from mmtrain.train.evaluations import Failed
from mmtrain.train.metrics import MetricsLog
from mmtrain.train.state import RunState


@dataclass(frozen=True, kw_only=True)
class VqaRun(Run):
    """A composed run that answers questions."""

    vocabulary: AnswerVocabulary | None
    """What the classifier chooses among."""
    ceiling: float | None
    """What whoever always chooses the vocabulary's best answer would score in training."""

    @property
    def section(self) -> VqaSection:
        """The recipe's [vqa]."""
        assert self.recipe.vqa is not None
        return self.recipe.vqa

    def answerer(self) -> Answerer:
        """The current weights (averaged ones where EMA is on) as evaluation takes them, in fp32."""
        with torch.device("meta"):
            model = Vqa(self.recipe.model.clip, self.section.model)
        model.load_state_dict(self.plain_weights(), assign=True)
        return Answerer(
            model=model.eval(),
            tokenizer=self.tokenizer,
            preprocess=self.preprocess,
            vocabulary=self.vocabulary,
            answer_length=self.section.data.answer_length,
            device=self.layout.device,
            batch_size=self.recipe.eval.batch_size,
            workers=self.recipe.data.workers,
            group=None if is_alone() else dist.group.WORLD,
        )

    def evaluate(self, log: MetricsLog | None) -> tuple[Answerer, list[Failed]]:
        """Run the recipe's evaluations over all ranks, into RUN/eval -> what was evaluated, and
        those that failed."""
        answerer = self.answerer()
        attempts = (
            self.attempt(one.name, partial(run_evaluation, answerer, one), command_words(one), log)
            for one in self.recipe.eval.of("answers")
        )
        return answerer, [failed for failed in attempts if failed is not None]

    def export(self, answerer: Answerer) -> None:
        """Write export/ and the report; on one rank."""
        saved = VqaModel(
            model=_without_network(answerer.model),
            tokenizer=self.tokenizer,
            preprocess=self.preprocess,
            vocabulary=self.vocabulary,
            answer_length=self.section.data.answer_length,
        )
        save_vqa(self.folder / "export", saved)
        write_report((self.folder,))


def build_vqa_run(recipe: TrainRecipe, layout: Layout) -> VqaRun:
    """Compose data, model, layout, objective and optimizers.

    Raises:
        UsageError: the recipe does not fit the data, the ranks or itself.
    """
    section = recipe.vqa
    assert section is not None
    _refuse_other_tasks(recipe)
    refuse_idle(recipe)
    if recipe.train.deterministic:
        use_deterministic_kernels()
    start = read_start(recipe.model.init, name=recipe.model.name)
    tokenizer = run_tokenizer(recipe, start)
    recipe = resolve(recipe, tokenizer)
    check_memory(recipe, layout)
    preprocess = build_preprocess(recipe)
    source = open_questions(
        recipe.data.train,
        questions=section.data.questions,
        annotations=section.data.annotations,
        config=recipe.data,
    )
    refuse_unanswered(source)
    vocabulary, best = None, None
    if section.classify is not None:
        questions = list(every_question(source))
        vocabulary = _vocabulary(section, questions)
        best = ceiling(questions, vocabulary)
    build_data = partial(
        VqaData,
        recipe.data,
        vqa=section.data,
        vocabulary=vocabulary,
        with_answers=section.generate is not None,
        source=source,
        preprocess=preprocess,
        tokenizer=tokenizer,
        seed=recipe.run.seed,
        batch_size=recipe.train.batch_size,
    )
    data = build_data(
        rank=layout.rank("dp"),
        world_size=layout.size("dp"),
        images=layout.is_first_stage,
        fixed_length=tokenizer.context_length if layout.size("pp") > 1 else None,
        pin_memory=layout.device.type == "cuda",
    )
    recipe = replace(recipe, vqa=_filled_in(section, vocabulary, tokenizer, data))
    whole = None if section.init is None else load_vqa(Path(section.init), key="vqa.init")
    found = {} if whole is None else whole.model.state_dict()
    model = build_started_model(recipe, None if start is None else start.model, found)
    fill_dictionaries(model, build_data(), seed=recipe.run.seed, given=found.keys())
    dropout = _freeze(model, recipe, layout)
    num_trainable, num_parameters = count_parameters(model)
    num_steps = total_steps(recipe.train, batches_per_epoch=data.batches_per_epoch)
    return VqaRun(
        recipe=recipe,
        folder=Path(recipe.run.dir),
        layout=layout,
        tokenizer=tokenizer,
        preprocess=preprocess,
        data=data,
        state=_build_state(recipe, model, layout, data, dropout),
        num_trainable=num_trainable,
        num_parameters=num_parameters,
        total_steps=num_steps,
        background=BackgroundSave() if recipe.train.async_checkpoint else None,
        notes=(
            *idle_notes(recipe, total_steps=num_steps),
            *vqa_notes(recipe, start, whole, tokenizer=tokenizer, vocabulary=vocabulary),
        ),
        vocabulary=vocabulary,
        ceiling=best,
    )


def check_vqa_evaluation(
    one: VqaEvalConfig, section: VqaSection | None, preprocess: PreprocessConfig
) -> None:
    """Open what an evaluation by questions will need, and read a handful of its samples.

    Raises:
        UsageError: something of it is not there or cannot be, or there is no [vqa] section.
    """
    if section is None:
        raise UsageError(f"eval.vqa {one.name!r} needs a [vqa] section, which trains for it")
    if one.head is not None and getattr(section, one.head) is None:
        raise UsageError(
            f'eval.vqa {one.name!r}: head = "{one.head}" has no [vqa.{one.head}]; leave it out'
        )
    check_evaluation(one, preprocess)


def _refuse_other_tasks(recipe: TrainRecipe) -> None:
    """What only contrastive training reads must not stand there unread."""
    others = [kind for kind, one in EVALUATORS.items() if one.judges != "answers"]
    given = [("loss", recipe.loss != LossConfig())]
    given += [(f"eval.{kind}", bool(getattr(recipe.eval, kind))) for kind in others]
    for key, is_given in given:
        if is_given:
            raise UsageError(f"[{key}] has no effect beside [vqa]; leave it out")
    text = recipe.model.text
    if recipe.vqa is not None and recipe.vqa.classify is not None and not text.cuts_padding:
        pool = (
            'model.text.pool = "end"' if text.pool == "last" else "model.text.mask_padding = true"
        )
        raise UsageError(
            "model.text sees its padding, and [vqa.classify] gives it questions without any; set "
            f"{pool}"
        )


def _vocabulary(section: VqaSection, questions: list[Question]) -> AnswerVocabulary:
    try:
        return build_vocabulary(questions, min_count=section.min_count)
    except ValueError as error:
        raise UsageError(f"vqa.{error}") from error


def _filled_in(
    section: VqaSection, vocabulary: AnswerVocabulary | None, tokenizer: Tokenizer, data: VqaData
) -> VqaSection:
    """The section with what data and tokenizer fix; this is what recipe.toml records."""
    classify, generate = section.classify, section.generate
    if classify is not None and vocabulary is not None:
        classify = replace(classify, num_answers=len(vocabulary.answers))
    if generate is not None:
        generate = replace(generate, vocab_size=tokenizer.vocab_size, text_length=data.text.longest)
    return replace(section, classify=classify, generate=generate)


def _freeze(model: Vqa, recipe: TrainRecipe, layout: Layout) -> LoraDropout | None:
    """Apply [lock] or [peft] -> what draws the adapter's dropout, if it has any."""
    towers = model.towers()
    for name, unlocked in (("vision", recipe.lock.vision), ("text", recipe.lock.text)):
        if unlocked is not None and name not in towers:
            raise UsageError(f"lock.{name} = {unlocked} has no effect: generate has no such tower")
        if unlocked is not None:
            lock_tower(towers[name], unlocked_layers=unlocked)
    dropout = adapt_model(model, recipe, layout)
    if recipe.peft is not None:
        _check_adapted(model, recipe)
    return dropout


def _check_adapted(model: Vqa, recipe: TrainRecipe) -> None:
    """Refuse an adapter beside which something stays as it was drawn, or a rate without use."""
    assert recipe.vqa is not None
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    for head in ("classify", "generate"):
        frozen = any(n.startswith(f"{head}.") and n not in trains for n in model.state_dict())
        if recipe.vqa.init is None and frozen:
            raise UsageError(
                f"[peft] leaves parts of vqa.{head} as they were drawn; name a trained model in "
                f'vqa.init, or set peft.also_train = ["{head}.*"]'
            )
    for tower in ("vision", "text"):
        given = getattr(recipe.vqa, f"{tower}_lr") is not None
        if given and not any(name.startswith(f"{tower}.") for name in trains):
            raise UsageError(
                f"vqa.{tower}_lr has no effect: nothing of that tower trains beside [peft]; leave "
                "it out"
            )


@torch.no_grad()
def _without_network(model: Vqa) -> Vqa:
    """The model whose learned tokens are what their network made of them."""
    generate = model.config.generate
    if model.generate is None or model.generate.prompt is None or generate is None:
        return model
    assert generate.prompt is not None
    prompt = replace(generate, prompt=baked(generate.prompt))
    with torch.device("meta"):
        plain = Vqa(model.clip, replace(model.config, generate=prompt))
    start = "generate.prompt."
    state = {name: x for name, x in model.state_dict().items() if not name.startswith(start)}
    plain.load_state_dict(state | {f"{start}rows": model.generate.prompt()}, assign=True)
    return plain.eval()


def _build_state(
    recipe: TrainRecipe, model: Vqa, layout: Layout, data: VqaData, dropout: LoraDropout | None
) -> RunState:
    section = recipe.vqa
    assert section is not None
    factors = {"vision.": section.vision_lr, "text.": section.text_lr}
    names = {
        **vars(parameter_names(model)),
        "lr_factors": {
            name: lr / recipe.optim.lr
            for name, _ in model.named_parameters()
            for start, lr in factors.items()
            if lr is not None and name.startswith(start)
        },
    }
    stages = parallelize(
        model, layout, precision=recipe.train.precision, compile=recipe.train.compile
    )
    if dropout is not None:
        dropout.watch(stages[0])
    objective = answer_objective(
        model,
        section.loss,
        layout=layout,
        seed=recipe.run.seed,
        lora_dropout=dropout is not None,
    )
    return build_state(
        recipe, stages=stages, objective=objective, names=names, layout=layout, data=data
    )
