"""A run that goes on with a training of open_clip's."""

from pathlib import Path

from mmtrain.build.run import Run
from mmtrain.errors import UsageError
from mmtrain.interop.open_clip_training import read_open_clip_training
from mmtrain.ranks import gather


def take_up_open_clip(run: Run) -> list[str]:
    """Go on with the training that model.init is of -> what was taken and what was not, in lines.

    Raises:
        UsageError: it is no checkpoint of open_clip's training, or beyond this run's end.
    """
    path = run.recipe.model.init
    assert path is not None, "checked when the recipe was read"
    training = read_open_clip_training(Path(path))
    step = training.epoch * run.data.batches_per_epoch
    if step >= run.total_steps:
        raise UsageError(
            f"model.init = {path} is of epoch {training.epoch}, step {step} here, and this run has "
            f"{run.total_steps} steps; raise train.epochs or train.steps"
        )
    optimizers = run.state.optimizers
    names = set().union(*gather(set(optimizers.state_dict())))
    taken = optimizers.load_moments(training.moments, steps=training.steps)
    taken = set().union(*gather(taken))
    run.state.step = step
    run.state.accounts.begin(run.data.plan, step)
    run.state.samples_seen = step * run.recipe.train.batch_size
    told = f"{path}: took the weights and AdamW's moments of {len(taken)} tensors (step "
    told += f"{training.steps:.0f}); epoch {training.epoch} begins, step {step} of this recipe"
    without = sorted(names - taken)
    return [
        told,
        "not taken, the recipe's hold: " + ", ".join((*training.left, "the order of the data")),
        *([f"without moments: {', '.join(without)}"] if without else []),
    ]
