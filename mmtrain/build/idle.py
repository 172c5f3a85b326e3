"""Settings of a recipe that cannot matter: refused, or told where leaving them in is honest use."""

from collections.abc import Iterator
from dataclasses import asdict

from mmtrain.build.tasks import task_sections
from mmtrain.data.shards.patterns import any_in_store
from mmtrain.errors import UsageError
from mmtrain.limits import idle_line
from mmtrain.loading.config import ModelConfig
from mmtrain.models.parameters import LockConfig
from mmtrain.models.text import TextConfig
from mmtrain.models.vision import VisionConfig
from mmtrain.nn import TransformerConfig
from mmtrain.parallel.mesh import ParallelConfig
from mmtrain.recipe import TrainRecipe
from mmtrain.tasks.sections import Sections
from mmtrain.train.config import TrainConfig
from mmtrain.train.metric_mirrors import LogConfig

_ROTARY = ("rope", "rope_2d")


def refuse_idle(recipe: TrainRecipe) -> None:
    """Refuse a setting that nothing would read.

    Raises:
        UsageError: naming it, all others of the same reason, and what they would need.
    """
    of_task = task_sections(recipe).idle(recipe.data, recipe.train)
    found = [*of_task, *_idle(recipe), *_idle_model(recipe.model)]
    if not found:
        return
    first = found[0][1]
    why, _, remedy = first.rpartition("; ")
    keys = [key for key, reason in found if reason == first]
    remedy = remedy.replace("leave it out", "leave {it} out")
    raise UsageError(idle_line(keys, why, remedy=remedy))


def _idle(recipe: TrainRecipe) -> Iterator[tuple[str, str]]:
    """Key with its value, and why it has no effect and what to do."""
    train = recipe.train
    saves = (train.checkpoint_every, train.checkpoint_minutes, recipe.eval.every)
    if train.on_bad_steps == "roll_back" and not any(saves):
        yield (
            'train.on_bad_steps = "roll_back"',
            "without checkpoints to roll back to; set train.checkpoint_every, or leave it out",
        )
    towers = (
        ("vision", recipe.lock.vision, recipe.model.vision.transformer.num_layers),
        ("text", recipe.lock.text, recipe.model.text.transformer.num_layers),
    )
    for name, unlocked, num_layers in towers:
        if unlocked is not None and unlocked < 0:
            raise UsageError(f"lock.{name} = {unlocked} must be at least 0, which locks all of it")
        # The head, the blocks and the embedding: that many, and everything trains.
        if unlocked is not None and unlocked > num_layers + 1:
            yield (
                f"lock.{name} = {unlocked}",
                f"on {num_layers} blocks, a head and an embedding: all of it would train; use at "
                f"most {num_layers + 1}, or leave it out",
            )


def _idle_model(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Of a model that starts from nothing; others bring what they bring."""
    if model.init is not None or model.vision_init is not None:
        return
    vision = model.vision
    standard_prefix = VisionConfig.prefix_positions
    if not vision.num_prefix and vision.prefix_positions != standard_prefix:
        yield (
            f'model.vision.prefix_positions = "{vision.prefix_positions}"',
            "without a token before the patches; set class_token or num_registers, or leave it out",
        )
    elif vision.positions != "learned" and vision.prefix_positions != standard_prefix:
        yield (
            f'model.vision.prefix_positions = "{vision.prefix_positions}"',
            f'with positions = "{vision.positions}"; choose learned ones, or leave it out',
        )
    for name, tower, standard in (
        ("vision", model.vision, VisionConfig.rope_theta),
        ("text", model.text, TextConfig.rope_theta),
    ):
        if tower.positions not in _ROTARY and tower.rope_theta != standard:
            yield (
                f"model.{name}.rope_theta = {tower.rope_theta}",
                f'with positions = "{tower.positions}"; choose rotary ones, or leave it out',
            )
        blocks = tower.transformer
        unread = "partial_rms" not in (blocks.norm, blocks.qk_norm)
        if unread and blocks.norm_fraction != TransformerConfig.norm_fraction:
            yield (
                f"model.{name}.transformer.norm_fraction = {blocks.norm_fraction}",
                f'with norm = "{blocks.norm}"; set norm = "partial_rms", or leave it out',
            )


def idle_notes(
    recipe: TrainRecipe, *, total_steps: int, ranks: int = 1, shards: int = 1
) -> list[str]:
    """Settings that cannot matter here, though they may in the recipe that this run is a try of.

    Args:
        recipe: as resolved.
        total_steps: updates of the run.
        ranks: processes that train it.
        shards: ranks that a weight is spread over.
    """
    data, optim, evaluation = recipe.data, recipe.optim, recipe.eval
    parallel = recipe.parallel
    judged, sections = evaluation.all, task_sections(recipe)
    standard = ParallelConfig()
    every = f"eval.every = {evaluation.every}"
    lines = (
        (
            (optim.warmup_steps or 0) > total_steps,
            f"optim.warmup_steps = {optim.warmup_steps} is longer than the run's {total_steps} "
            "steps: the learning rate never reaches its peak",
        ),
        (
            not evaluation.fast and evaluation.batch_size != type(evaluation).batch_size,
            f"eval.batch_size = {evaluation.batch_size} has no effect without eval.fast = true",
        ),
        (
            evaluation.every is not None and not judged,
            f"{every} has no effect: the recipe names no evaluation",
        ),
        (
            evaluation.precision != "fp32" and not judged,
            f'eval.precision = "{evaluation.precision}" has no effect: the recipe names no '
            "evaluation",
        ),
        (
            (evaluation.every or 0) > total_steps and bool(judged),
            f"{every} is beyond the run's {total_steps} steps: it evaluates once, at the end",
        ),
        (
            not data.workers and data.prefetch != type(data).prefetch,
            f"data.prefetch = {data.prefetch} has no effect without data.workers",
        ),
        (
            data.cache_dir is not None and not _reads_stores(recipe),
            f"data.cache_dir = {data.cache_dir} has no effect: nothing of what the run reads is in "
            "a store, and what is on this machine is not copied",
        ),
        *((True, line) for line in sections.idle_notes(data)),
        (
            parallel.pp == 1 and parallel.schedule != standard.schedule,
            f'parallel.schedule = "{parallel.schedule}" has no effect with parallel.pp = 1',
        ),
        (
            parallel.tp == 1 and parallel.sequence != standard.sequence,
            "parallel.sequence = false has no effect with parallel.tp = 1",
        ),
        *_idle_mirrors(recipe.log),
        *_locked_from_nothing(recipe.lock, recipe.model, sections),
        *_idle_training(recipe.train, total_steps, ranks),
        (
            shards == 1 and parallel.dp_kind == "fsdp" and not parallel.reshard_after_forward,
            "parallel.reshard_after_forward = false has no effect where no weight is spread over "
            "ranks",
        ),
    )
    return [line for holds, line in lines if holds]


def _reads_stores(recipe: TrainRecipe) -> bool:
    """Whether any data of a recipe, of its training or an evaluation, are in a store."""
    return any_in_store([asdict(recipe.data), asdict(recipe.eval)])


def _idle_training(train: TrainConfig, total_steps: int, ranks: int) -> Iterator[tuple[bool, str]]:
    """Of a short run, and of a lonely process, which has no others to wait for or to be late to."""
    yield (
        (train.checkpoint_every or 0) > total_steps,
        f"train.checkpoint_every = {train.checkpoint_every} is beyond the run's {total_steps} "
        "steps: it saves at the end",
    )
    for name in ("hang_minutes", "straggler_factor", "straggler_every"):
        value, standard = getattr(train, name), getattr(TrainConfig, name)
        yield (
            ranks == 1 and value not in (None, standard),
            f"train.{name} = {value} has no effect on one process",
        )
    looks = train.straggler_factor is not None
    yield (
        ranks > 1 and not looks and train.straggler_every != TrainConfig.straggler_every,
        f"train.straggler_every = {train.straggler_every} has no effect without "
        "train.straggler_factor",
    )


def _idle_mirrors(log: LogConfig) -> Iterator[tuple[bool, str]]:
    """What a mirror that is off is told."""
    of_mirrors = {"wandb": ("wandb_mode", "wandb_project"), "trackio": ("trackio_project",)}
    for mirror, names in of_mirrors.items():
        for name in names:
            value = getattr(log, name)
            yield (
                not getattr(log, mirror) and value != getattr(LogConfig, name),
                f'log.{name} = "{value}" has no effect with log.{mirror} = false',
            )


def _locked_from_nothing(
    lock: LockConfig, model: ModelConfig, sections: Sections
) -> Iterator[tuple[bool, str]]:
    """A tower that is frozen as it was drawn; its head too, which timm's towers have not."""
    for name in ("vision", "text"):
        unlocked = getattr(lock, name)
        started = sections.starts_whole or model.init is not None
        if name == "vision" and model.vision_init is not None:
            yield (
                unlocked == 0 and sections.has_projection,
                "lock.vision = 0: the projection, which no timm tower has, stays as it was drawn; "
                "lock.vision = 1 lets it train",
            )
            continue
        yield (
            unlocked is not None and not started,
            f"lock.{name} = {unlocked} freezes weights as they were drawn: the recipe names no "
            "model to start from (model.init)",
        )
