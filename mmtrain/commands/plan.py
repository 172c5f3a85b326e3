"""`mmtrain plan`: a recipe's layout over so many ranks, before one of them is rented."""

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmtrain.data.questions.answers import build_vocabulary, every_question
from mmtrain.data.questions.source import open_questions
from mmtrain.data.text.tokenizer import Tokenizer, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.plan.layout import Plan, plan_layout
from mmtrain.plan.memory import RankMemory
from mmtrain.recipe import TrainRecipe, load_recipe, resolve
from mmtrain.tasks.config import VqaSection

_GIB = 1 << 30


def plan_command(*, recipe: Path, overrides: list[str], world_size: int) -> None:
    """Print the layout, who talks to whom, and the memory of a rank of each pipeline coordinate.

    Raises:
        UsageError: the layout does not fit, an adapter trains, or the questions of a recipe with
            [vqa.classify], which fix its answers, are not there.
    """
    loaded = load_recipe(recipe, overrides)
    if loaded.peft is not None:
        raise UsageError(
            f"plan counts no adapter, and {recipe} has a section [peft]; without it the plan is of "
            "training all weights"
        )
    tokenizer = build_tokenizer(loaded.tokenizer)
    resolved = resolve(loaded, tokenizer)
    if resolved.vqa is not None:
        resolved = replace(resolved, vqa=_with_sizes(resolved, resolved.vqa, tokenizer))
    plan = plan_layout(resolved, world_size=world_size)
    train, parallel = resolved.train, resolved.parallel
    sizes = plan.layout.config
    print(
        f"{world_size} ranks = pp {sizes.pp} x dp_replicate {sizes.dp_replicate} x dp_shard "
        f"{sizes.dp_shard} x tp {sizes.tp}"
        f"{'' if sizes.dp_kind == 'fsdp' else f', {sizes.dp_kind}'}"
        f"; {plan.num_parameters / 1e6:,.1f} M parameters"
    )
    print(
        f"batch {train.batch_size:,} = {plan.layout.size('dp')} data-parallel ranks x "
        f"{plan.num_microbatches} microbatches x {plan.rows} rows; {plan.passes} "
        f"pass{'es' if plan.passes > 1 else ''} over the batch; {train.precision}"
    )
    console = Console(width=None if sys.stdout.isatty() else 140)
    if plan.traffic:
        console.print(_traffic_table(plan), highlight=False)
    if parallel.pp > 1:
        print(
            f"pipeline: {parallel.schedule}, idle {plan.idle:.1%} of the time (stages that cost "
            "the same, a backward twice a forward)"
        )
    console.print(_memory_table(plan), highlight=False)
    print(
        "GiB on the fullest rank of each pipeline coordinate; texts at full length; gathered: "
        "FSDP's whole copies at a time; total: at the fullest moment of a step, before which not "
        "all gradients need be there; without the framework's own, train.compile, the input "
        "pipeline and what the allocator loses"
    )
    if parallel.cpu_offload:
        print(
            "weights, gradients and optimizer are in main memory (parallel.cpu_offload) and not in "
            "the total, which is the GPU's: gathered, activations, the gradients that a block has "
            "just made, and whole ones where there are microbatches"
        )


def _with_sizes(recipe: TrainRecipe, section: VqaSection, tokenizer: Tokenizer) -> VqaSection:
    """The section with what tokenizer and questions fix; `num_answers` spares the questions."""
    generate, classify = section.generate, section.classify
    if generate is not None:
        length = tokenizer.context_length + section.data.answer_length
        generate = replace(generate, vocab_size=tokenizer.vocab_size, text_length=length)
    if classify is not None and classify.num_answers is None:
        source = open_questions(
            recipe.data.train,
            questions=section.data.questions,
            annotations=section.data.annotations,
            config=recipe.data,
        )
        try:
            found = build_vocabulary(list(every_question(source)), min_count=section.min_count)
        except ValueError as error:
            raise UsageError(f"vqa.{error}") from error
        classify = replace(classify, num_answers=len(found.answers))
    return replace(section, classify=classify, generate=generate)


def _traffic_table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("axis", "ranks", "rank 0 talks to", "about", "GiB sent a step"):
        right = heading in ("ranks", "GiB sent a step")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for one in plan.traffic:
        names = [str(rank) for rank in one.ranks]
        shown = names if len(names) <= 4 else [*names[:3], "...", names[-1]]
        sent = f"{one.sent / _GIB:,.3f}"
        table.add_row(one.axis, str(one.size), ", ".join(shown), one.what, sent)
    return table


def _memory_table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    headings = ("stage", "M parameters", "weights", "gradients", "optimizer", "gathered")
    for heading in (*headings, "activations", "total"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in plan.memory:
        table.add_row(*_memory_cells(one))
    return table


def _memory_cells(one: RankMemory) -> tuple[str, ...]:
    parts = (one.weights, one.gradients, one.optimizer, one.gathered, one.activations, one.total)
    return (
        " + ".join(map(str, one.stages)),
        f"{one.num_parameters / 1e6:,.2f}",
        *(f"{part / _GIB:,.2f}" for part in parts),
    )
