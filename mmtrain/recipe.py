"""Recipes: the parts' own configs composed, read from TOML with overrides."""

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmtrain.data.config import DataConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.eval.config import EvalConfig
from mmtrain.loading.config import ModelConfig
from mmtrain.loading.decoder_start import with_decoder
from mmtrain.loading.hidden_name import refuse_hidden_name
from mmtrain.loading.hub_models import pinned
from mmtrain.loading.start import with_start
from mmtrain.loading.text_sizes import refuse_other_sizes, text_sizes
from mmtrain.losses.config import SIGLIP_BIAS
from mmtrain.models.parameters import LockConfig
from mmtrain.optim.config import OptimConfig
from mmtrain.parallel.mesh import ParallelConfig
from mmtrain.peft import PeftConfig
from mmtrain.settings.decode import decode
from mmtrain.settings.describe import NONE
from mmtrain.settings.layers import laid_over, read_layers
from mmtrain.settings.overrides import apply_overrides
from mmtrain.settings.paths import change_models, escape_path, expand_paths
from mmtrain.settings.read_toml import parse_toml, read_toml
from mmtrain.tasks.adapter_sections import (
    check_adapter,
    refuse_cut_adapters,
    with_learned_tokens,
)
from mmtrain.tasks.config import LossSection, VqaSection
from mmtrain.train.config import RunConfig, TrainConfig
from mmtrain.train.metric_mirrors import LogConfig
from mmtrain.train.run_folder import RECIPE_FILE, fetched_models, has_begun

_SIZES = ("vocab_size", "context_length", "end_token_id")
_LENGTHS = ("steps", "epochs", "phase")
"""Keys of [train] that say how long it is."""
_WHOLE = ("data.captions", "peft.rank_pattern", "peft.alpha_pattern")
"""Tables whose keys are the user's: a nearer one leaves nothing of a farther one."""
_STARTS = ("model.init", "model.vision_init", "vqa.init", "vqa.generate.init", "peft.init")


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """A whole run."""

    run: RunConfig
    """Folder and seed."""
    data: DataConfig
    """Shards, captions, augmentation."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Texts to ids; it also fixes the text tower's vocabulary and context."""
    model: ModelConfig
    """Both towers."""
    vqa: VqaSection | None = None
    """Answer questions about images, on the towers of [model]. None: train the towers to match."""
    loss: LossSection = field(default_factory=LossSection)
    """The contrastive loss, and terms beside it."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer, schedule, EMA."""
    train: TrainConfig
    """Length, batch, precision, checkpoints."""
    lock: LockConfig = field(default_factory=LockConfig)
    """Frozen towers."""
    peft: PeftConfig | None = None
    """An adapter trains and the model that it stands on does not. None: the model trains."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Sizes of the mesh's axes."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluations during and after training."""
    log: LogConfig = field(default_factory=LogConfig)
    """Mirrors of metrics.jsonl."""


def load_recipe(
    path: Path,
    overrides: list[str] | None = None,
    *,
    run_dir: Path | None = None,
    resumes: bool = False,
) -> TrainRecipe:
    """Read a recipe, lay the overrides (`--train.steps 20 ...`) over its dict, decode the whole.

    Args:
        path: a TOML file, which may begin from another one (`base = "..."`).
        overrides: words of a command line.
        run_dir: what run.dir is, whatever else says so.
        resumes: take what the run in run.dir recorded of the model that it started from, where it
            has a checkpoint of its own, instead of reading that model, which may be gone.

    Raises:
        UsageError: an unknown key (with the nearest one), a wrong type, a bad value, a path with a
            variable that is not set.
    """
    overrides = list(overrides or ())
    if run_dir is not None:
        overrides += ["--run.dir", escape_path(str(run_dir))]
    data: dict[str, Any] = {}
    for layer in read_layers(path):
        refuse_hidden_name(data, layer)
        data = _with_one_length(laid_over(data, layer, whole=_WHOLE), _lengths_in(layer))
    refuse_hidden_name(data, apply_overrides(TrainRecipe, {}, overrides))
    data = apply_overrides(TrainRecipe, data, overrides)
    data = expand_paths(TrainRecipe, data)
    data = _with_one_length(data, _lengths_among(overrides), tell=True)
    begun = _begun(data) if resumes else None
    known = {} if begun is None else fetched_models(Path(data["run"]["dir"]))
    data = change_models(TrainRecipe, data, lambda text, key: pinned(text, key=key, known=known))
    filled = with_start(with_decoder(_with_written_scale(data), begun=begun), begun=begun)
    recipe = decode(TrainRecipe, filled)
    _refuse_written_sizes(data, recipe)
    if recipe.model.init_training and (recipe.model.init is None or recipe.vqa is not None):
        raise UsageError(
            "model.init_training = true goes on with model.init, a checkpoint of open_clip's "
            "training of two towers; name it, or set it to false"
        )
    if recipe.model.init_training and str(recipe.model.init).startswith("hf://"):
        raise UsageError(
            f"model.init_training = true goes on with a checkpoint's file, and model.init = "
            f"{recipe.model.init} is a model of the hub, without moments; set it to false"
        )
    if recipe.data.mixture and recipe.vqa is not None and recipe.vqa.dialogues is None:
        raise UsageError(
            "data.mixture mixes dialogues beside [vqa], and questions are of one set of images; "
            "name that in data.train"
        )
    peft, model, vqa = recipe.peft, recipe.model, recipe.vqa
    refuse_cut_adapters(peft, model=model, vqa=vqa, parallel=recipe.parallel)
    if peft is None:
        return recipe
    check_adapter(peft, model=model, vqa=vqa, lock=recipe.lock, optim=recipe.optim)
    model, vqa = with_learned_tokens(peft, model=model, vqa=vqa)
    return replace(recipe, model=model, vqa=vqa)


def mirror_in(overrides: list[str]) -> str | None:
    """The `run.mirror` that the words of a command name.

    Raises:
        UsageError: a word that is no override, or a variable that is not set.
    """
    data = expand_paths(TrainRecipe, apply_overrides(TrainRecipe, {}, overrides))
    return decode(RunConfig, {"dir": "", **data.get("run", {})}).mirror


def _begun(data: dict[str, Any]) -> dict[str, Any] | None:
    """What the run of a recipe recorded, if it has a checkpoint, here or in its mirror."""
    section = data.get("run", {})
    folder = section.get("dir") if isinstance(section, dict) else None
    if not isinstance(folder, str):
        return None
    if has_begun(Path(folder)):
        return expand_paths(TrainRecipe, read_toml(Path(folder) / RECIPE_FILE))
    mirror = section.get("mirror", NONE)
    if not isinstance(mirror, str) or mirror == NONE or not names_start(data):
        return None
    from mmtrain.train.copy_run import copied_recipe  # the machinery of checkpoints: a second

    text = copied_recipe(mirror, Path(folder), key="run.mirror")
    named = f"{RECIPE_FILE} of {mirror}"
    return None if text is None else expand_paths(TrainRecipe, parse_toml(text, named=named))


def names_start(data: dict[str, Any]) -> bool:
    """Whether a recipe's dict begins with weights that lie elsewhere."""
    return any(_value_of(data, key) not in (None, NONE) for key in _STARTS)


def _value_of(data: Any, key: str) -> Any:
    for name in key.split("."):
        data = data.get(name) if isinstance(data, dict) else None
    return data


def _with_written_scale(data: dict[str, Any]) -> dict[str, Any]:
    """A sigmoid's logits start at its published scale where the recipe says nothing; a scale that
    is written stays, also one that is the default's. The bias alone is filled in then."""
    model, loss = data.get("model", {}), data.get("loss", {})
    if not isinstance(model, dict) or not isinstance(loss, dict) or "vqa" in data:
        return data
    unsaid = model.get("init_logit_bias", NONE) == NONE and model.get("init", NONE) == NONE
    if loss.get("kind") != "siglip" or "init_logit_scale" not in model or not unsaid:
        return data
    return data | {"model": model | {"init_logit_bias": SIGLIP_BIAS}}


def _refuse_written_sizes(data: dict[str, Any], recipe: TrainRecipe) -> None:
    """What is written of the text tower must be what the tokenizer has, also where it is the
    default's value; a start's own tokenizer is looked at by `with_start`, a decoder's by `resolve`.

    Raises:
        UsageError: it is not.
    """
    text = data.get("model", {}).get("text", {})
    written = {name: getattr(recipe.model.text, name) for name in text if name in _SIZES}
    generate = recipe.vqa and recipe.vqa.generate
    if generate and generate.init is not None:
        return
    if written and recipe.tokenizer != TokenizerConfig():
        tokenizer, add_eot = build_tokenizer(recipe.tokenizer), recipe.tokenizer.add_eot
        # Not yet shortened by the learned vectors, whose places it has.
        refuse_other_sizes(written, text_sizes(tokenizer, num_context=0, add_eot=add_eot))


def _lengths_in(layer: dict[str, Any]) -> set[str]:
    """Which of them a recipe's file says."""
    train = layer.get("train", {})
    return {name for name in _LENGTHS if isinstance(train, dict) and name in train}


def _lengths_among(overrides: list[str]) -> set[str]:
    """Which of them the words of a command line say."""
    keys = {word.partition("=")[0].removeprefix("--") for word in overrides}
    return {name for name in _LENGTHS if f"train.{name}" in keys}


def _with_one_length(
    data: dict[str, Any], given: set[str], *, tell: bool = False
) -> dict[str, Any]:
    """`--train.steps 20` over a recipe that counts epochs, or has phases, means 20 steps, and so
    on. With the length phases lose what else they change, which is told."""
    train = data.get("train")
    if not isinstance(train, dict):
        return data
    said = sorted(name for name in given if train.get(name, NONE) not in (NONE, []))
    dropped = set(_LENGTHS) - set(said) if said else set()
    is_first = os.environ.get("RANK", "0") == "0"  # before there is a process group
    if tell and is_first and "phase" in dropped and train.get("phase"):
        print(f"mmtrain: train.{said[0]} takes the place of [[train.phase]]", file=sys.stderr)
    return data | {"train": {k: v for k, v in train.items() if k not in dropped}}
