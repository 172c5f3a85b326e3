"""What of a model trains: all but locked towers, or an adapter, which starts and ends as a file."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from mmtrain.data.order.randomness import draws
from mmtrain.errors import UsageError
from mmtrain.interop.hf_clip import clip_links
from mmtrain.interop.hf_peft import Adapter, read_adapter, write_adapter
from mmtrain.interop.hf_peft_whole import completed
from mmtrain.interop.tensor_links import Link
from mmtrain.loading.hub_models import model_folder
from mmtrain.models import Clip
from mmtrain.models.decoder import Decoder
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
from mmtrain.peft.lora import TERMS

CONTEXT, PROMPT = "text.embed.context", "generate.prompt."
"""Where learned tokens are among a model's parameters."""


def lock_parts(model: Clip | Vqa, config: LockConfig) -> None:
    """Freeze what a recipe locks, in place.

    Args:
        model: whose towers and decoder it names.
        config: the section [lock].

    Raises:
        UsageError: what is locked is not there.
    """
    parts: dict[str, Tower | Decoder] = {**model.towers()}
    if isinstance(model, Vqa) and model.generate is not None:
        parts["decoder"] = model.generate.decoder
    for name, unlocked in vars(config).items():
        if unlocked is None:
            continue
        if name not in parts:
            raise UsageError(
                f"lock.{name} = {unlocked} has no effect: the model has no {name} of that kind, it "
                f"has {', '.join(parts)}; leave it out"
            )
        lock_tower(parts[name], unlocked_layers=unlocked)


def check_whole(config: PeftConfig, layout: Layout) -> None:
    """Refuse a layout that cuts layers which an adapter needs whole.

    Raises:
        UsageError: naming the setting.
    """
    if config.kind == "lora":
        for key in ("dora", "dropout"):
            if getattr(config.lora, key):
                _check_whole(layout, key=key)


def adapt(model: Clip | Vqa, config: PeftConfig, *, seed: int) -> LoraDropout | None:
    """Give a model the recipe's adapter and freeze the rest, in place.

    Returns:
        What draws LoRA's dropout, where there is any.

    Raises:
        UsageError: a setting does not fit the model, or peft.init is no adapter of this model.
    """
    dropout, rests = None, resting(model)  # before LoRA freezes what it stands beside
    try:
        if config.kind == "lora":
            if config.lora.dropout:
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
        found = {f"{name}.lora_a": a for name, (a, _) in adapter.terms.items()}
        for name, (_, b) in adapter.terms.items():
            # Ours count by this recipe's scale.
            found[f"{name}.lora_b"] = b * (adapter.scale_of(name) / config.lora.scale_of(name))
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
            "peft.rank, peft.rank_pattern, peft.dora, peft.targets or peft.num_tokens"
        )
    found |= _trained_whole(adapter, state, folder)
    with torch.no_grad():
        for name, value in found.items():
            state[name].copy_(value)


def _trained_whole(
    adapter: Adapter, state: Mapping[str, nn.Parameter], folder: Path
) -> dict[str, Tensor]:
    """What the adapter trained in full, which is the model's or trains here as well."""
    for name, value in adapter.whole.items():
        here = state[name]
        if not here.requires_grad and not torch.equal(here.detach().to(value), value):
            raise UsageError(
                f"peft.init = {folder} holds another {name} than the model, which does not train "
                "here; name it in peft.also_train, or take the model that the adapter stands on"
            )
    return {name: value for name, value in adapter.whole.items() if state[name].requires_grad}


def plain_tensors(tensors: Mapping[str, Tensor], config: PeftConfig | None) -> dict[str, Tensor]:
    """A run's weights as the plain model has them: with LoRA's terms in the layers' weights."""
    if config is None or config.kind != "lora":
        return dict(tensors)
    return merged_tensors(tensors, config.lora)


def save_adapter(
    folder: Path,
    model: Clip | Vqa,
    tensors: Mapping[str, Tensor],
    *,
    config: PeftConfig,
    base: str,
) -> list[str]:
    """Write what a run trained as an adapter's folder in peft's form.

    Returns:
        What of peft.also_train that form has no place for.

    Args:
        folder: made if need be.
        model: the plain model.
        tensors: the run's weights, LoRA's terms still by themselves.
        config: of the adapter.
        base: the model that the run started from.
    """
    names = [n for n in tensors if any(fnmatchcase(n, one) for one in config.also_train)]
    names = [n for n in names if n.rpartition(".")[2] not in TERMS]
    if config.kind == "lora":
        terms = {n: (a.float(), b.float()) for n, (a, b) in lora_terms(tensors).items()}
        lengths = {n: length.float() for n, length in lora_lengths(tensors).items()}
        own = {name: config.lora.scale_of(name) for name in terms}
        scale = config.lora.scale
        scales = {name: one for name, one in own.items() if one != scale}
        links, blocks, task = _links(model), None, None
        plain = {n: x.float() for n, x in tensors.items() if n.rpartition(".")[2] not in TERMS}
        whole, names = completed(names, plain, links, terms) if names else ({}, [])
        adapter = Adapter(
            kind="lora", terms=terms, scale=scale, scales=scales, lengths=lengths, whole=whole
        )
    else:
        kind = "prompt" if config.kind == "context" else config.kind
        adapter = Adapter(kind=kind, terms={}, rows=_rows(model).float())
        links, blocks, task = [], _text_blocks(model), "CAUSAL_LM"
        if config.kind == "context":
            task = "FEATURE_EXTRACTION"
    write_adapter(folder, adapter, links=links, blocks=blocks, task=task, base=base)
    return names


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
