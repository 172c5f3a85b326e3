"""Configs of one function made equal, and told apart where they are not.

Two configs may describe the same forward pass (a default and its value written out, a knob of
training). Foreign forms say only what the forward pass needs, so that is what a round trip keeps.
"""

import dataclasses
from dataclasses import replace
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.models import ClipConfig, TextConfig, VisionConfig
from mmtrain.nn import TransformerConfig


def canonical(config: ClipConfig) -> ClipConfig:
    """The config with all that cannot change a trained model's features at one fixed value."""
    text = config.text
    if text.trunk is not None:  # ids that it has beyond the tokenizer's are never asked for
        text = replace(text, vocab_size=TextConfig.vocab_size, end_token_id=None)
    else:
        text = _canonical_text(text)
    # The logits' scale and bias are among the tensors.
    return replace(
        config,
        vision=canonical_vision(config.vision),
        text=text,
        init_logit_scale=ClipConfig.init_logit_scale,
        init_logit_bias=None if config.init_logit_bias is None else 0.0,
    )


def _canonical_text(text: TextConfig) -> TextConfig:
    return replace(
        text,
        transformer=canonical_blocks(text.transformer),
        rope_theta=_used(text, "rope_theta", text.positions == "rope"),
        mask_padding=_used(text, "mask_padding", text.transformer.mask == "full"),
        end_token_id=_end_token(text),
        context_start=_used(text, "context_start", text.num_context > 0),
    )


def canonical_vision(
    vision: VisionConfig, *, pixels_of: VisionConfig | None = None
) -> VisionConfig:
    """The same of one tower, with mean and std of `pixels_of` where these travel apart."""
    pixels = vision if pixels_of is None else pixels_of
    if vision.trunk is not None:  # it has no other knob
        return replace(vision, mean=pixels.mean, std=pixels.std)
    return replace(
        vision,
        transformer=canonical_blocks(vision.transformer),
        mean=pixels.mean,
        std=pixels.std,
        rope_theta=_used(vision, "rope_theta", "rope" in vision.positions),
        prefix_positions=_prefix_positions(vision),
        # The norm acts on each token alone: before or after one is picked is the same.
        pool_norm="after" if vision.pool == "first" else vision.pool_norm,
        patch_dropout=0.0,
        drop_edge=bool(vision.image_size % vision.patch_size),
    )


def refuse_losses(config: ClipConfig, read_back: ClipConfig, *, form: str) -> None:
    """Refuse to write a form from which another model would be read.

    Args:
        config: what is to be written.
        read_back: what the form makes of it.
        form: names the form in messages.

    Raises:
        UsageError: naming the fields that the form cannot express.
    """
    lost = differences(canonical(config), canonical(read_back))
    if lost:
        option = f"--format {form.replace('_', '-')}"
        raise UsageError(f"{option} cannot express {', '.join(lost)}; use --format mmtrain")


def refuse_trunk(tower: VisionConfig | TextConfig, *, form: str) -> None:
    """Refuse a tower that a form has no words for, since none of our blocks are in it.

    Raises:
        UsageError: naming its trunk.
    """
    if tower.trunk is not None:
        name = "vision" if isinstance(tower, VisionConfig) else "text"
        raise UsageError(
            f'--format {form} cannot express model.{name}.trunk.kind = "{tower.trunk.kind}"; use '
            "--format open-clip or mmtrain"
        )


def differences(one: Any, other: Any, *, path: str = "model") -> list[str]:
    """`path.field = value` of `one` for every field in which two configs of a class differ."""
    found: list[str] = []
    for field in dataclasses.fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        name = f"{path}.{field.name}"
        if dataclasses.is_dataclass(mine) and type(mine) is type(theirs):
            found += differences(mine, theirs, path=name)
        elif dataclasses.is_dataclass(mine):  # of a kind that the other has not
            found.append(f"{name}.kind = {show(getattr(mine, 'kind', None))}")
        elif mine != theirs:
            found.append(f"{name} = {show(mine)}")
    return found


def show(value: Any) -> str:
    """A value as a TOML file or a JSON file has it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def canonical_blocks(blocks: TransformerConfig) -> TransformerConfig:
    """The same of a stack of blocks."""
    norms = (blocks.norm, blocks.qk_norm)
    local = tuple(layer for layer in range(blocks.num_layers) if blocks.is_local(layer))
    usual = blocks.attention_scale == blocks.head_size**-0.5
    return replace(
        blocks,
        num_kv_heads=blocks.kv_heads,
        head_dim=blocks.head_size,
        ff_dim=blocks.hidden_dim,
        norm_fraction=_used(blocks, "norm_fraction", "partial_rms" in norms),
        norm_bias=_used(blocks, "norm_bias", "layer" in norms),
        attention_scale=None if usual else blocks.attention_scale,
        local_window=blocks.local_window if local else None,
        local_layers=local or None,
        layer_scale=None if blocks.layer_scale is None else 1.0,
        stochastic_depth=0.0,
        init="torch",
    )


def _used(config: TransformerConfig | VisionConfig | TextConfig, name: str, used: bool) -> Any:
    """The field's value where it has an effect, else its default."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return getattr(config, name) if used else defaults[name]


def _prefix_positions(vision: VisionConfig) -> Any:
    """The first of the names that stand for the same number of positions."""
    if vision.positions != "learned":
        return "class"
    counts = {"class": int(vision.class_token), "none": 0, "all": vision.num_prefix}
    return next(name for name, count in counts.items() if count == vision.num_positioned_prefix)


def _end_token(text: TextConfig) -> int | None:
    """None where no length is needed, and for the largest id: every text that has an end token has
    it where its largest id is."""
    if text.end_token_id == text.vocab_size - 1:
        return None
    return text.end_token_id if text.pool == "end" or text.cuts_padding else None
