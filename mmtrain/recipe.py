"""Recipes: the parts' own configs composed, read from TOML with overrides."""

import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmtrain.data.config import DataConfig
from mmtrain.data.text.tokenizer import Tokenizer, TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.eval.config import EvalConfig
from mmtrain.loading.config import ModelConfig
from mmtrain.loading.start import Start, with_start
from mmtrain.losses.config import STANDARD_LIMIT
from mmtrain.models import ClipConfig, TextConfig
from mmtrain.models.parameters import LockConfig
from mmtrain.optim import OptimConfig
from mmtrain.parallel import ParallelConfig
from mmtrain.peft import PeftConfig
from mmtrain.settings.decode import apply_overrides, decode
from mmtrain.settings.paths import expand_paths
from mmtrain.settings.read_toml import read_toml
from mmtrain.tasks.config import LossSection, VqaSection
from mmtrain.train.config import RunConfig, TrainConfig
from mmtrain.train.metrics import LogConfig


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


def load_recipe(path: Path, overrides: list[str] | None = None) -> TrainRecipe:
    """Read a recipe, lay the overrides (`--train.steps 20 ...`) over its dict, decode the whole.

    Raises:
        UsageError: an unknown key (with the nearest one), a wrong type, a bad value, a path with a
            variable that is not set.
    """
    data = apply_overrides(TrainRecipe, read_toml(path), overrides or [])
    data = expand_paths(TrainRecipe, data)
    _keep_one_length(data, overrides or [])
    recipe = decode(TrainRecipe, with_start(data))
    if recipe.model.init_training and (recipe.model.init is None or recipe.vqa is not None):
        raise UsageError(
            "model.init_training = true goes on with model.init, a checkpoint of open_clip's "
            "training of two towers; name it, or set it to false"
        )
    if recipe.data.mixture and recipe.vqa is not None:
        raise UsageError(
            "data.mixture does not work beside [vqa], whose questions are of one set of images; "
            "name that in data.train"
        )
    _refuse_cut_adapters(recipe)
    return recipe if recipe.peft is None else _with_learned_tokens(recipe, recipe.peft)


def _refuse_cut_adapters(recipe: TrainRecipe) -> None:
    """Refuse layouts that cut what an adapter or learned tokens belong to."""
    peft = recipe.peft
    prompt = recipe.vqa and recipe.vqa.generate and recipe.vqa.generate.prompt
    learned = prompt or (peft and peft.prompt)
    for axis, key, given in (
        ("pp", "[peft]", peft is not None),
        ("pp", "model.text.num_context", recipe.model.text.num_context > 0),
        ("pp", "vqa.generate.prompt", prompt is not None),
        # Its keys and values would have to go with the heads of a rank.
        ("tp", "a learned prefix", learned and learned.kind == "prefix"),
        # An LSTM holds its weights by other means than its parameters' names.
        ("tp", "an LSTM behind learned tokens", learned and learned.network == "lstm"),
    ):
        if given and (size := getattr(recipe.parallel, axis)) > 1:
            raise UsageError(
                f"{key} does not work with parallel.{axis} = {size}; set parallel.{axis} = 1"
            )


def _with_learned_tokens(recipe: TrainRecipe, peft: PeftConfig) -> TrainRecipe:
    """Give the model the places of an adapter's learned tokens, and refuse what contradicts it."""
    starts = recipe.model.init, recipe.model.vision_init, recipe.vqa and recipe.vqa.init
    for key, given, remedy in (
        ("lock", recipe.lock != LockConfig(), "peft.also_train says what trains beside it"),
        ("model.init_training", recipe.model.init_training, "it goes on with other weights"),
    ):
        if given:
            raise UsageError(f"{key} has no effect beside [peft]: {remedy}; leave it out")
    if not any(starts):
        raise UsageError(
            "[peft] adapts a trained model, and this one starts from nothing; name it in model.init"
        )
    if recipe.optim.kind == "muon" and not peft.also_train:
        raise UsageError(
            'optim.kind = "muon" has no effect beside [peft], which trains none of the matrices '
            'that it takes; use "adamw"'
        )
    if peft.kind == "lora":
        return recipe
    num_tokens = peft.prompt.num_tokens
    if peft.kind == "context":
        text = replace(recipe.model.text, num_context=num_tokens)
        return replace(recipe, model=replace(recipe.model, text=text))
    if recipe.vqa is None or recipe.vqa.generate is None:
        raise UsageError(
            f'peft.kind = "{peft.kind}" learns tokens before a decoder\'s text, and the recipe has '
            'no [vqa.generate]; use "lora", or "context" for a text tower'
        )
    try:
        generate = replace(recipe.vqa.generate, prompt=peft.prompt)
    except ValueError as error:
        raise UsageError(f"vqa.generate.{error}") from error
    return replace(recipe, vqa=replace(recipe.vqa, generate=generate))


def _keep_one_length(data: dict[str, Any], overrides: list[str]) -> None:
    """`--train.steps 20` over a recipe that counts epochs means 20 steps, and conversely."""
    keys = {word.partition("=")[0].removeprefix("--") for word in overrides}
    for given, other in (("steps", "epochs"), ("epochs", "steps")):
        if f"train.{given}" in keys and f"train.{other}" not in keys:
            data["train"].pop(other, None)


def run_tokenizer(recipe: TrainRecipe, start: Start | None) -> Tokenizer:
    """The tokenizer of a run: the recipe's, or that of the model it starts from.

    Learned vectors of the text tower take places of its context, so texts have so many less.

    Args:
        recipe: as read.
        start: the model of model.init; None: nothing.
    """
    num_learned = recipe.model.text.num_context
    if start is not None and recipe.tokenizer == TokenizerConfig():
        num_learned -= start.model.config.text.num_context
        return start.tokenizer.shortened(num_learned) if num_learned else start.tokenizer
    tokenizer = build_tokenizer(recipe.tokenizer)
    return tokenizer.shortened(num_learned) if num_learned else tokenizer


def resolve(recipe: TrainRecipe, tokenizer: Tokenizer) -> TrainRecipe:
    """Fill in what one section fixes for another; the result is what recipe.toml records.

    The tokenizer fixes the text tower's vocabulary, context and end token. `loss.kind = "siglip"`
    needs a bias: where none is set, the logits start at SigLIP's published scale 10 and bias -10
    (Zhai et al. 2023, arXiv:2303.15343, section 3.2).

    Raises:
        UsageError: the text tower asks for another vocabulary or context than the tokenizer has.
    """
    text, standard = recipe.model.text, {f.name: f.default for f in fields(TextConfig)}
    from_tokenizer = {
        "vocab_size": tokenizer.vocab_size,
        "context_length": tokenizer.context_length + text.num_context,
        "end_token_id": tokenizer.eot_id if recipe.tokenizer.add_eot else None,
    }
    for name, value in from_tokenizer.items():
        asked = getattr(text, name)
        if asked not in (value, standard[name]):
            raise UsageError(
                f"model.text.{name} = {asked}, but the tokenizer has {value}; leave it out, "
                "the [tokenizer] section decides"
            )
    if text.num_context:
        from_tokenizer["context_start"] = tokenizer.num_before
    # The towers are complete here, so the record of the run does not hang on a name's meaning;
    # beside `init` it tells how those weights are read.
    name = None if recipe.model.init is None else recipe.model.name
    model = replace(recipe.model, name=name, text=replace(text, **from_tokenizer))
    if recipe.loss.kind == "siglip" and model.init_logit_bias is None:
        unset = model.init is None and model.init_logit_scale == ClipConfig.init_logit_scale
        scale = math.log(10.0) if unset else model.init_logit_scale
        model = replace(model, init_logit_bias=-10.0, init_logit_scale=scale)
    if model.init is None and recipe.vqa is None:
        _check_logits(model, recipe.loss)
    return replace(recipe, model=model)


def _check_logits(model: ModelConfig, loss: LossSection) -> None:
    """Refuse a start of the logits' scale and bias that the loss would not keep, or not see."""
    low, high = loss.scale_range(math.log(STANDARD_LIMIT))
    if not low <= model.init_logit_scale <= high:
        raise UsageError(
            f"model.init_logit_scale = {model.init_logit_scale:g} is the logarithm of what "
            f"multiplies the logits, and the first update would cut that into 1 to "
            f"{math.exp(high):.4g}; start within 0 and {high:.4g}, or set loss.max_logit_scale"
        )
    if loss.kind == "clip" and model.init_logit_bias is not None:
        raise UsageError(
            f'model.init_logit_bias = {model.init_logit_bias} has no effect with loss.kind = "clip"'
            ': softmax does not see a bias; set model.init_logit_bias = "none", or loss.kind = '
            '"siglip"'
        )
