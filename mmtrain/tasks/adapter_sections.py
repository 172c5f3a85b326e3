"""What [peft] asks of the sections beside it."""

from dataclasses import replace

from mmtrain.errors import UsageError
from mmtrain.loading.config import ModelConfig
from mmtrain.models.parameters import LockConfig
from mmtrain.optim.config import OptimConfig
from mmtrain.parallel.mesh import ParallelConfig
from mmtrain.peft import PeftConfig
from mmtrain.tasks.config import VqaSection


def refuse_cut_adapters(
    peft: PeftConfig | None, *, model: ModelConfig, vqa: VqaSection | None, parallel: ParallelConfig
) -> None:
    """Refuse layouts that cut what an adapter or learned tokens belong to.

    Raises:
        UsageError: naming both.
    """
    prompt = vqa and vqa.generate and vqa.generate.prompt
    learned = prompt or (peft and peft.prompt)
    for axis, key, given in (
        ("pp", "[peft]", peft is not None),
        ("pp", "model.text.num_context", model.text.num_context > 0),
        ("pp", "vqa.generate.prompt", prompt is not None),
        # Its keys and values would have to go with the heads of a rank.
        ("tp", "a learned prefix", learned and learned.kind == "prefix"),
        # An LSTM holds its weights by other means than its parameters' names.
        ("tp", "an LSTM behind learned tokens", learned and learned.network == "lstm"),
    ):
        if given and (size := getattr(parallel, axis)) > 1:
            raise UsageError(
                f"{key} does not work with parallel.{axis} = {size}; set parallel.{axis} = 1"
            )


def check_adapter(
    peft: PeftConfig,
    *,
    model: ModelConfig,
    vqa: VqaSection | None,
    lock: LockConfig,
    optim: OptimConfig,
) -> None:
    """Refuse what contradicts an adapter.

    Raises:
        UsageError: naming it.
    """
    starts = [model.init, model.vision_init, vqa and vqa.init]
    starts.append(vqa and vqa.generate and vqa.generate.init)
    for key, given, remedy in (
        ("lock", lock != LockConfig(), "peft.also_train says what trains beside it"),
        ("model.init_training", model.init_training, "it goes on with other weights"),
    ):
        if given:
            raise UsageError(f"{key} has no effect beside [peft]: {remedy}; leave it out")
    if not any(starts):
        raise UsageError(
            "[peft] adapts a trained model, and this one starts from nothing; name it in model.init"
        )
    if optim.kind == "muon" and not peft.also_train:
        raise UsageError(
            'optim.kind = "muon" has no effect beside [peft], which trains none of the matrices '
            'that it takes; use "adamw"'
        )


def with_learned_tokens(
    peft: PeftConfig, *, model: ModelConfig, vqa: VqaSection | None
) -> tuple[ModelConfig, VqaSection | None]:
    """[model] and [vqa] with the places of an adapter's learned tokens.

    Raises:
        UsageError: there is nothing that would read them.
    """
    if peft.kind == "lora":
        return model, vqa
    num_tokens = peft.prompt.num_tokens
    if peft.kind == "context":
        return replace(model, text=replace(model.text, num_context=num_tokens)), vqa
    if vqa is None or vqa.generate is None:
        raise UsageError(
            f'peft.kind = "{peft.kind}" learns tokens before a decoder\'s text, and the recipe has '
            'no [vqa.generate]; use "lora", or "context" for a text tower'
        )
    try:
        generate = replace(vqa.generate, prompt=peft.prompt)
    except ValueError as error:
        raise UsageError(f"vqa.generate.{error}") from error
    return model, replace(vqa, generate=generate)
