"""peft's adapter folders, both ways: LoRA, prompt tuning, P-tuning v1, prefix tuning (P-tuning v2).

adapter_config.json and adapter_model.safetensors. The network that learned tokens are trained
through is in no file of peft's: what it gives is. A layer of a model that transformers has not
stands there by our name.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, cat, equal, nn, zeros

from mmtrain.errors import UsageError
from mmtrain.files import replace_file, save_tensors
from mmtrain.interop.foreign_config import ForeignConfig, read_json
from mmtrain.interop.hf_peft_whole import modules_from, modules_to, refuse_tied
from mmtrain.interop.package import float_tensors, read_tensors
from mmtrain.interop.peft_patterns import fitting
from mmtrain.interop.tensor_links import Link, Tensors, refuse_quantised
from mmtrain.nn import TransformerConfig
from mmtrain.peft.lora_config import lora_scale

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE, OLD_WEIGHTS_FILE = "adapter_model.safetensors", "adapter_model.bin"
PROMPTS = "prompt_embeddings"
KINDS = {"PROMPT_TUNING": "prompt", "P_TUNING": "p_tuning", "PREFIX_TUNING": "prefix"}
NO_EFFECT = (
    "auto_mapping base_model_name_or_path encoder_dropout encoder_hidden_size encoder_num_layers "
    "encoder_reparameterization_type ensure_weight_tying exclude_modules fan_in_fan_out "
    "inference_mode layers_pattern layers_to_transform lora_dropout megatron_config megatron_core "
    "num_transformer_submodules peft_version prefix_projection "
    "prompt_tuning_init prompt_tuning_init_state_dict_path prompt_tuning_init_text "
    "qalora_group_size revision runtime_config target_modules task_type token_dim "
    "tokenizer_kwargs tokenizer_name_or_path"
)
"""Fields of training, or that the tensors tell better."""
_FIRST = "base_model.model."
_LARGEST = 1 << 30
_A, _B, _M = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What an adapter adds to a model."""

    kind: str
    """lora, prompt, p_tuning or prefix."""
    terms: dict[str, tuple[Tensor, Tensor]]
    """LoRA: A [r, in] and B [out, r] by the name of our layer."""
    scale: float = 1.0
    """LoRA: the weight of every term."""
    scales: dict[str, float] = field(default_factory=dict)
    """LoRA: that of terms with another one, by the name of our layer."""
    lengths: dict[str, Tensor] = field(default_factory=dict)
    """DoRA: of a weight's rows, [out], by the name of our layer; none, or of every term's."""
    whole: dict[str, Tensor] = field(default_factory=dict)
    """LoRA: all tensors of modules that trained in full, by our names."""
    rows: Tensor | None = None
    """The learned tokens of the other kinds, [n, D] or [n, 2 * layers * heads * head size]."""

    def scale_of(self, name: str) -> float:
        """The weight of a layer's term."""
        return self.scales.get(name, self.scale)


def read_adapter(
    folder: Path, *, model: nn.Module, links: list[Link], blocks: TransformerConfig | None
) -> Adapter:
    """The adapter of a folder.

    Args:
        folder: that peft or `write_adapter` wrote.
        model: what it is for, on any device.
        links: of the model's tensors and transformers'.
        blocks: of the decoder, or text tower, that learned tokens are for; None: of none.

    Raises:
        UsageError: a file is missing or damaged, the kind is none of these, or it is of another
            model.
    """
    source = str(_config_file(folder))
    data = read_json(folder / CONFIG_FILE)
    if isinstance(data, dict):
        # peft writes every setting of every method: those that are off say nothing; a 0 does.
        off = (None, "", [], {})
        data = {name: x for name, x in data.items() if x is not False and x not in off}
    fields = ForeignConfig(data, source=source)
    kind = fields.only("peft_type", "LORA", *KINDS)
    weights = _weights_file(folder)
    found = read_tensors(weights)
    refuse_quantised(found, floats=found.keys(), source=str(weights))
    tensors = float_tensors(found)
    fields.ignore(*NO_EFFECT.split())
    if kind == "LORA":
        return _read_lora(fields, tensors, model, links)
    num_tokens = fields.take("num_virtual_tokens", int)
    layers, heads = fields.take("num_layers", int, 0), fields.take("num_attention_heads", int, 0)
    fields.close()
    shape = None
    if blocks is not None:
        wide = 2 * blocks.num_layers * blocks.kv_heads * blocks.head_size
        shape = [num_tokens, wide if kind == "PREFIX_TUNING" else blocks.dim]
    rows = tensors.get(PROMPTS)
    if blocks is not None and kind == "PREFIX_TUNING" and layers and heads:
        found, wanted = [layers, heads], [blocks.num_layers, blocks.kv_heads]
        if found != wanted:
            raise UsageError(
                f"{source}: num_layers and num_attention_heads are {found} and the model has "
                f"{wanted}: the adapter is of another model"
            )
    if rows is None or list(rows.shape) != shape:
        found = "missing" if rows is None else list(rows.shape)
        wanted = "has no text for it" if shape is None else f"needs {shape}"
        raise UsageError(
            f"{weights}: {PROMPTS} is {found} and the model {wanted}: the adapter is "
            "of another model"
        )
    return Adapter(kind=KINDS[kind], terms={}, rows=rows)


def _config_file(folder: Path) -> Path:
    """Of the one adapter that a folder holds: peft keeps one by another name in a folder below."""
    path = folder / CONFIG_FILE
    if path.is_file():
        return path
    if below := sorted(one.parent for one in folder.glob(f"*/{CONFIG_FILE}")):
        names = ", ".join(str(one) for one in below[:5])
        raise UsageError(f"{path} is missing; adapters are below it, name {names}")
    raise UsageError(
        f"{path} is missing; name the adapter/ of a run that trained one, or a folder that peft "
        "wrote"
    )


def _weights_file(folder: Path) -> Path:
    """What peft reads: the pickle of its older versions, of which tensors alone are taken, where
    there is no other."""
    old = folder / OLD_WEIGHTS_FILE
    return old if old.is_file() and not (folder / WEIGHTS_FILE).exists() else folder / WEIGHTS_FILE


def _read_lora(
    fields: ForeignConfig, tensors: Tensors, model: nn.Module, links: list[Link]
) -> Adapter:
    fields.only("bias", "none")
    # The others change the weights that the adapter stands on.
    fields.only("init_lora_weights", True, "gaussian", "orthogonal", "eva")
    rank, alpha = fields.take("r", int, 8), fields.take("lora_alpha", float, 8.0)
    rslora = fields.only("use_rslora", False, True)
    dora = fields.only("use_dora", False, True)
    ranks, alphas = fields.take("rank_pattern", dict, {}), fields.take("alpha_pattern", dict, {})
    modules = fields.take("modules_to_save", list, [])
    fields.close()
    _check_sizes(fields.source, {"r": rank, **ranks}, {"lora_alpha": alpha, **alphas})
    scale = lora_scale(alpha, rank, rslora=rslora)
    sizes = {
        name: (part.out_features, part.in_features)
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear)
    }
    ours: dict[str, tuple[str, ...]] = {name: (name,) for name in sizes}
    for link in links:
        ours[_layer(link.theirs[0])] = tuple(_layer(name) for name in link.ours)
    # peft takes the first expression that fits.
    fits = fitting({**ranks, **alphas}, list(ours), source=fields.source)
    terms: dict[str, tuple[Tensor, Tensor]] = {}
    lengths: dict[str, Tensor] = {}
    scales: dict[str, float] = {}
    left, unlike = dict(tensors), []
    for key in sorted(tensors):
        path = key.removeprefix(_FIRST).removesuffix(_A)
        other = key.removesuffix(_A) + _B
        if not key.endswith(_A) or path not in ours or other not in left:
            continue
        a, b = left.pop(key), left.pop(other)
        own = next((x for p, x in ranks.items() if path in fits[p]), rank)
        its_alpha = next((x for p, x in alphas.items() if path in fits[p]), alpha)
        here = lora_scale(its_alpha, own, rslora=rslora)
        unlike += [path] if own != a.size(0) else []
        scales |= {} if here == scale else dict.fromkeys(ours[path], here)
        parts = b.chunk(len(ours[path]))
        terms |= {name: (a, part) for name, part in zip(ours[path], parts, strict=True)}
        length = left.pop(key.removesuffix(_A) + _M, None) if dora else None
        if length is not None:
            lengths |= dict(zip(ours[path], length.chunk(len(parts)), strict=True))
    wrong = [n for n, (a, b) in terms.items() if sizes.get(n) != (b.size(0), a.size(1))]
    wrong += [n for n in terms if dora and (n not in lengths or lengths[n].shape != sizes[n][:1])]
    bare = {key.removeprefix(_FIRST): left.pop(key) for key in list(left) if key.startswith(_FIRST)}
    whole, others = modules_from([str(one) for one in modules], bare, model.state_dict(), links)
    refuse_tied(model, links, whole, bare, fields.source)
    wrong += [*others, *bare]
    if left or wrong or unlike or not terms:
        name = next(iter([*wrong, *unlike, *left]), "no layer's term is there, it")
        raise UsageError(f"{fields.source}: {name} does not fit: the adapter is of another model")
    return Adapter(
        kind="lora", terms=terms, scale=scale, scales=scales, lengths=lengths, whole=whole
    )


def _check_sizes(source: str, ranks: dict[str, Any], alphas: dict[str, Any]) -> None:
    """Refuse ranks and alphas that are none."""
    of_types = (("rank", ranks, (int,)), ("alpha", alphas, (int, float)))
    for kind, name, value, types in (
        (k, n, x, t) for k, all_, t in of_types for n, x in all_.items()
    ):
        if type(value) not in types or not 0 < value < _LARGEST:
            raise UsageError(f"{source}: {name!r} = {value!r} gives no {kind}")


def _layer(weight: str) -> str:
    return weight.removesuffix(".weight")


def write_adapter(
    folder: Path,
    adapter: Adapter,
    *,
    links: list[Link],
    blocks: TransformerConfig | None,
    task: str | None = "CAUSAL_LM",
    base: str = "",
) -> None:
    """Write a folder that `peft.PeftModel.from_pretrained` reads.

    Args:
        folder: made if need be.
        adapter: of a model.
        links: of the model's tensors and transformers'; where a layer has none, its name is ours.
        blocks: of the decoder or text tower that learned tokens are for; LoRA needs none.
        task: what peft wraps the model for.
        base: where the model lies, for peft's record.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {
        "base_model_name_or_path": base,
        "task_type": task,
        "inference_mode": True,
    }
    if adapter.kind == "lora":
        fields, tensors = _lora_to(adapter, links)
    else:
        assert adapter.rows is not None and blocks is not None
        fields = _prompt_to(adapter.kind, adapter.rows.size(0), blocks)
        tensors = {PROMPTS: adapter.rows.contiguous()}
    save_tensors(folder / WEIGHTS_FILE, tensors)
    replace_file(folder / CONFIG_FILE, json.dumps(data | fields, indent=2) + "\n")


def _prompt_to(kind: str, num_tokens: int, blocks: TransformerConfig) -> dict[str, Any]:
    is_prefix = kind == "prefix"
    return {
        "peft_type": {ours: theirs for theirs, ours in KINDS.items()}[kind],
        "num_virtual_tokens": num_tokens,
        "token_dim": blocks.kv_heads * blocks.head_size if is_prefix else blocks.dim,
        "num_layers": blocks.num_layers,
        "num_attention_heads": blocks.kv_heads if is_prefix else blocks.num_heads,
        "num_transformer_submodules": 1,
    }


def _lora_to(adapter: Adapter, links: list[Link]) -> tuple[dict[str, Any], Tensors]:
    """A fused layer of theirs gets our terms side by side: the A's stacked, B in blocks."""
    linked = {_layer(name) for link in links for name in link.ours}
    layers = {_layer(link.theirs[0]): [_layer(n) for n in link.ours] for link in links}
    layers |= {name: [name] for name in adapter.terms if name not in linked}
    tensors: Tensors = {}
    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}
    for path, names in layers.items():
        found = [adapter.terms.get(name) for name in names]
        if not any(pair is not None for pair in found):
            continue
        # A fused layer counts by one weight, that of its first part with a term.
        scales[path] = next(adapter.scale_of(n) for n in names if n in adapter.terms)
        ratios = {n: adapter.scale_of(n) / scales[path] for n in names}
        found = [
            pair if pair is None or ratios[n] == 1 else (pair[0], pair[1] * ratios[n])
            for n, pair in zip(names, found, strict=True)
        ]
        a, b = _side_by_side(found)
        tensors |= {f"{_FIRST}{path}{_A}": a.contiguous(), f"{_FIRST}{path}{_B}": b.contiguous()}
        if adapter.lengths:
            # A part of a fused layer without a term would want its weight's own lengths.
            assert all(name in adapter.lengths for name in names), "DoRA of whole layers"
            tensors[f"{_FIRST}{path}{_M}"] = cat([adapter.lengths[name] for name in names])
        ranks[path] = a.size(0)
    modules, whole = modules_to(adapter.whole, links)
    tensors |= {f"{_FIRST}{name}": x for name, x in whole.items()}
    rank = min(ranks.values())
    alphas = {path: scales[path] * size for path, size in ranks.items()}
    alpha = adapter.scale * rank
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(ranks),
        "lora_dropout": 0.0,
        "use_dora": bool(adapter.lengths),
        "bias": "none",
        **({"modules_to_save": modules} if modules else {}),
        "fan_in_fan_out": any(".c_" in path for path in ranks),
        "rank_pattern": {p: r for p, r in ranks.items() if r != rank},
        "alpha_pattern": {path: own for path, own in alphas.items() if own != alpha},
    }
    return fields, tensors


def _side_by_side(found: list[tuple[Tensor, Tensor] | None]) -> tuple[Tensor, Tensor]:
    """Terms of equally large parts of one matrix as one term; a part without one gets zeros."""
    there = [pair for pair in found if pair is not None]
    first, size = there[0][0], there[0][1].size(0)
    if all(equal(a, first) for a, _ in there):
        return first, cat([zeros(size, first.size(0)) if p is None else p[1] for p in found])
    a = cat([pair[0] for pair in there])
    b, start = [], 0
    for pair in found:
        rows = zeros(size, a.size(0))
        if pair is not None:
            stop = start + pair[0].size(0)
            rows[:, start:stop] = pair[1]
            start = stop
        b.append(rows)
    return a, cat(b)
