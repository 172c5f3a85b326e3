"""What of a model trains: all but locked towers, or an adapter, which starts and ends as a file."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mmtrain.data.order.randomness import draws
from mmtrain.errors import UsageError
from mmtrain.interop.hf_clip import clip_links
from mmtrain.interop.hf_peft import Adapter, read_adapter, write_adapter
from mmtrain.interop.tensor_links import Link
from mmtrain.loading.hub_models import model_folder
from mmtrain.models import Clip
from mmtrain.models.model import Tower
from mmtrain.models.parameters import LockConfig, lock_tower
from mmtrain.models.text import TextEmbed
from mmtrain.models.vqa import Vqa
from mmtrain.nn import TransformerConfig
from mmtrain.parallel.mesh import Layout
from mmtrain.peft import (
    LoraDropout,
    PeftConfig,
    apply_lora,
    freeze_all_but,
    lora_lengths,
    lora_terms,
    merged_tensors,
    resting,
)

CONTEXT, PROMPT = "text.embed.context", "generate.prompt."
"""Where learned tokens are among a model's parameters."""


def lock_towers(towers: Mapping[str, Tower], config: LockConfig) -> None:
    """Freeze what a recipe locks, in place.

    Args:
        towers: of the model, by name.
        config: the section [lock].

    Raises:
        UsageError: what is locked is not there.
    """
    for name, unlocked in vars(config).items():
        if unlocked is None:
            continue
        if name not in towers:
            raise UsageError(f"lock.{name} = {unlocked} has no effect: generate has no such tower")
        lock_tower(towers[name], unlocked_layers=unlocked)


def adapt(
    model: Clip | Vqa, config: PeftConfig, *, layout: Layout, seed: int
) -> LoraDropout | None:
    """Give a model the recipe's adapter and freeze the rest, in place.

    Returns:
        What draws LoRA's dropout, where there is any.

    Raises:
        UsageError: a setting fits neither the model nor the layout, or peft.init is no adapter of
            this model.
    """
    dropout, rests = None, resting(model)  # before LoRA freezes what it stands beside
    try:
        if config.kind == "lora":
            if config.lora.dora:
                _check_whole(layout, key="dora")
            if config.lora.dropout:
                _check_whole(layout, key="dropout")
                dropout = LoraDropout(config.lora.dropout, draws)
            apply_lora(model, config.lora, seed=seed, dropout=dropout)
        learned = {"lora": None, "context": CONTEXT}.get(config.kind, PROMPT)
        freeze_all_but(model, learned=learned, also_train=config.also_train, rests=rests)
    except ValueError as error:
        raise UsageError(f"peft.{error}") from error
    if config.init is not None:
        _start_from(model, config, model_folder(config.init, key="peft.init"))
    return dropout


def _check_whole(layout: Layout, *, key: str) -> None:
    for axis in ("tp", "pp"):
        if (size := layout.size(axis)) > 1:
            raise UsageError(
                f"peft.{key} needs whole layers on every rank, not parallel.{axis} = {size}; "
                f"leave it out or set parallel.{axis} = 1"
            )


def _start_from(model: Clip | Vqa, config: PeftConfig, folder: Path) -> None:
    """Copy the adapter of peft.init, which must be of the very shape that is trained."""
    adapter = read_adapter(folder, model=model, links=_links(model), blocks=_text_blocks(model))
    state = dict(model.named_parameters())
    kind = "lora" if adapter.kind == "lora" else "context"
    if kind != config.kind:
        raise UsageError(
            f'peft.init = {folder} is of kind "{adapter.kind}", not "{config.kind}"; change one'
        )
    if kind == "lora":
        # Ours count by this recipe's scale.
        ratio = adapter.scale / config.lora.scale
        found = {f"{name}.lora_a": a for name, (a, _) in adapter.terms.items()}
        found |= {f"{name}.lora_b": b * ratio for name, (_, b) in adapter.terms.items()}
        found |= {f"{name}.lora_m": length for name, length in adapter.lengths.items()}
        wanted = {name for name in state if ".lora_" in name}
    else:
        assert adapter.rows is not None
        found, wanted = {CONTEXT: adapter.rows}, {CONTEXT}
    differing = sorted(found.keys() ^ wanted)
    differing += [n for n in found.keys() & wanted if found[n].shape != state[n].shape]
    if differing:
        raise UsageError(
            f"peft.init = {folder}: {differing[0]} is not the same in both; take the adapter's "
            "peft.rank, peft.dora, peft.targets or peft.num_tokens"
        )
    with torch.no_grad():
        for name, value in found.items():
            state[name].copy_(value)


def plain_tensors(tensors: Mapping[str, Tensor], config: PeftConfig | None) -> dict[str, Tensor]:
    """A run's weights as the plain model has them: with LoRA's terms in the layers' weights."""
    if config is None or config.kind != "lora":
        return dict(tensors)
    return merged_tensors(tensors, scale=config.lora.scale)


def save_adapter(
    folder: Path,
    model: Clip | Vqa,
    tensors: Mapping[str, Tensor],
    *,
    config: PeftConfig,
    base: str,
) -> None:
    """Write what a run trained as an adapter's folder in peft's form.

    Args:
        folder: made if need be.
        model: the plain model.
        tensors: the run's weights, LoRA's terms still by themselves.
        config: of the adapter.
        base: the model that the run started from.
    """
    if config.kind == "lora":
        terms = {n: (a.float(), b.float()) for n, (a, b) in lora_terms(tensors).items()}
        lengths = {n: length.float() for n, length in lora_lengths(tensors).items()}
        adapter = Adapter(kind="lora", terms=terms, scale=config.lora.scale, lengths=lengths)
        links, blocks, task = _links(model), None, None
    else:
        kind = "prompt" if config.kind == "context" else config.kind
        adapter = Adapter(kind=kind, terms={}, rows=_rows(model).float())
        links, blocks, task = [], _text_blocks(model), "CAUSAL_LM"
        if config.kind == "context":
            task = "FEATURE_EXTRACTION"
    write_adapter(folder, adapter, links=links, blocks=blocks, task=task, base=base)


@torch.no_grad()
def _rows(model: Clip | Vqa) -> Tensor:
    """The learned tokens, past their network."""
    if isinstance(model, Vqa) and model.generate is not None and model.generate.prompt is not None:
        return model.generate.prompt()
    assert model.text is not None and isinstance(model.text.embed, TextEmbed)
    assert model.text.embed.context is not None
    return model.text.embed.context.detach()


def _links(model: nn.Module) -> list[Link]:
    """A CLIP is one of transformers' models; what answers questions is none."""
    return clip_links(model.config) if isinstance(model, Clip) else []


def _text_blocks(model: Clip | Vqa) -> TransformerConfig | None:
    """Of what learned tokens stand in."""
    if isinstance(model, Vqa) and model.generate is not None and model.generate.prompt is not None:
        return model.generate.decoder.config.transformer
    return None if model.text is None else model.text.config.transformer
