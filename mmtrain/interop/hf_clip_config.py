"""Hugging Face's configs of CLIP, SigLIP and SigLIP 2 and our config, both ways.

https://github.com/huggingface/transformers: models/clip, models/siglip and models/siglip2. SigLIP 2
is computed at its native square resolution; its published checkpoints of fixed resolution are of
type `siglip`.
"""

from dataclasses import replace
from typing import Any, Literal

from mmtrain.errors import UsageError
from mmtrain.interop.canonical import refuse_losses, refuse_trunk, show
from mmtrain.interop.foreign_config import ForeignConfig, refusing
from mmtrain.models import ClipConfig, TextConfig, VisionConfig
from mmtrain.nn import TransformerConfig
from mmtrain.nn.feed_forward import Activation

Kind = Literal["clip", "siglip", "siglip2"]
CLASSES: dict[str, tuple[Kind, str]] = {
    "clip": ("clip", "CLIPModel"),
    "siglip": ("siglip", "SiglipModel"),
    "siglip2": ("siglip2", "Siglip2Model"),
}
"""By the config's model_type."""

ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
GENERIC = (
    "_attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures "
    "attention_dropout bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward "
    "cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dropout dtype "
    "early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task "
    "forced_bos_token_id forced_eos_token_id id2label initializer_factor initializer_range "
    "is_composition is_decoder is_encoder_decoder label2id length_penalty max_length min_length "
    "model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences "
    "output_attentions output_hidden_states output_scores pad_token_id prefix problem_type "
    "pruned_heads remove_invalid_values repetition_penalty return_dict return_dict_in_generate "
    "sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss "
    "tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript "
    "transformers_version typical_p use_bfloat16"
)
"""Fields that every config of theirs may hold and that do not touch a trained CLIP."""


def config_from_hf(data: dict[str, Any], *, source: str = "config.json") -> ClipConfig:
    """Our config of a config.json.

    Raises:
        UsageError: a field that is unknown, or that we cannot compute.
    """
    kind = model_kind(data, source=source)
    fields = ForeignConfig(data, source=source)
    fields.ignore(*GENERIC.split())
    vision, text = (_section(fields, data, name) for name in ("vision_config", "text_config"))
    with refusing(source):
        build = _clip if kind == "clip" else _siglip
        config = build(kind, fields, vision, text)
    for section in (vision, text, fields):
        section.close()
    return config


def model_kind(data: Any, *, source: str) -> Kind:
    """Which of their models a config is of.

    Raises:
        UsageError: none that we read.
    """
    kind = data.get("model_type") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in CLASSES:
        raise UsageError(
            f"{source}: model_type = {show(kind)} is not supported; we read {', '.join(CLASSES)}"
        )
    return CLASSES[kind][0]


def _section(fields: ForeignConfig, data: dict[str, Any], name: str) -> ForeignConfig:
    """A tower's section. The `..._dict` of older files replaces it, in theirs as in ours."""
    old = fields.section(f"{name}_dict")
    new = fields.section(name)
    section = old if data.get(f"{name}_dict") else new
    section.ignore(*GENERIC.split())
    section.ignore("projection_dim")  # the model's own counts
    return section


def _clip(_: Kind, fields: ForeignConfig, vision: ForeignConfig, text: ForeignConfig) -> ClipConfig:
    vocab_size = text.take("vocab_size", int, 49408)
    eos = text.take("eos_token_id", int, 49407)
    # 2 stands for the first files, whose texts are pooled at the largest id.
    largest = vocab_size - 1 if vocab_size == TextConfig.vocab_size else None
    vision.only("num_channels", 3)
    return ClipConfig(
        vision=VisionConfig(
            transformer=_blocks(vision, dim=768, num_layers=12, num_heads=12, eps=1e-5),
            **_sizes(vision, patch_size=32),
        ),
        text=TextConfig(
            transformer=replace(
                _blocks(text, dim=512, num_layers=12, num_heads=8, eps=1e-5),
                mask="causal",
                init="scaled",
            ),
            vocab_size=vocab_size,
            context_length=text.take("max_position_embeddings", int, 77),
            end_token_id=largest if eos == 2 else eos,
        ),
        embed_dim=fields.take("projection_dim", int, 512),
        init_logit_scale=fields.take("logit_scale_init_value", float, ClipConfig.init_logit_scale),
    )


def _siglip(kind: Kind, _: ForeignConfig, vision: ForeignConfig, text: ForeignConfig) -> ClipConfig:
    text.ignore("eos_token_id")  # texts are pooled at the context's last token
    vision.only("vision_use_head", True)
    vision.only("num_channels", 3)
    if kind == "siglip2":
        patch_size, num_patches = (
            vision.take_side("patch_size", 16),
            vision.take_size("num_patches", 256),
        )
        grid = round(num_patches**0.5)
        if grid**2 != num_patches:
            raise UsageError(f"{vision.source}: num_patches = {num_patches} must be a square")
        sizes = {"image_size": grid * patch_size, "patch_size": patch_size}
    else:
        sizes = _sizes(vision, patch_size=16)
    blocks = {
        "dim": 768,
        "num_layers": 12,
        "num_heads": 12,
        "eps": 1e-6,
        "act": "gelu_pytorch_tanh",
    }
    image_blocks, text_blocks = _blocks(vision, **blocks), _blocks(text, **blocks)
    embed_dim = text.take("projection_size", int, text_blocks.dim)
    return ClipConfig(
        vision=VisionConfig(
            transformer=image_blocks,
            **sizes,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            patch_bias=True,
            class_token=False,
            embed_norm=False,
            pool="attention",
            pool_norm="before",
            projection=False,
        ),
        text=TextConfig(
            transformer=text_blocks,
            vocab_size=text.take("vocab_size", int, 32000),
            context_length=text.take("max_position_embeddings", int, 64),
            end_token_id=None,
            pool="last",
            mask_padding=False,
            projection_bias=True,
        ),
        embed_dim=embed_dim,
        init_logit_scale=2.302585092994046,
        init_logit_bias=-10.0,
    )


def _blocks(
    section: ForeignConfig,
    *,
    dim: int,
    num_layers: int,
    num_heads: int,
    eps: float,
    act: str = "quick_gelu",
) -> TransformerConfig:
    """Theirs, with the defaults of their class."""
    others = (name for name in ACTIVATIONS if name != act)
    hidden = section.take("intermediate_size", int, 4 * dim)
    dim = section.take("hidden_size", int, dim)
    return TransformerConfig(
        dim=dim,
        num_layers=section.take("num_hidden_layers", int, num_layers),
        num_heads=section.take("num_attention_heads", int, num_heads),
        ff_dim=None if hidden == 4 * dim else hidden,
        activation=ACTIVATIONS[section.only("hidden_act", act, *others)],
        norm_eps=section.take("layer_norm_eps", float, eps),
    )


def _sizes(vision: ForeignConfig, *, patch_size: int) -> dict[str, Any]:
    image, patch = vision.take_side("image_size", 224), vision.take_side("patch_size", patch_size)
    return {"image_size": image, "patch_size": patch, "drop_edge": bool(image % patch)}


def config_to_hf(config: ClipConfig, *, kind: Kind | None = None) -> dict[str, Any]:
    """The config.json of our config.

    Args:
        config: our model.
        kind: which of their models; None takes the one that computes the same, CLIP or SigLIP.

    Raises:
        UsageError: it computes something else, naming the fields.
    """
    refuse_trunk(config.vision, form="hf")
    refuse_trunk(config.text, form="hf")
    if kind is None:
        kind = "siglip" if config.vision.pool == "attention" else "clip"
    names: dict[str, str] = {value: name for name, value in reversed(ACTIVATIONS.items())}
    if (
        missing := {
            blocks.activation for blocks in (config.vision.transformer, config.text.transformer)
        }
        - names.keys()
    ):
        raise UsageError(f"--format hf cannot express activation = {show(missing.pop())}")
    vision = _section_to(config.vision.transformer, names)
    vision |= {"patch_size": config.vision.patch_size, "num_channels": 3}
    if kind == "siglip2":
        vision["num_patches"] = config.vision.num_patches
    else:
        vision["image_size"] = config.vision.image_size
    text = _section_to(config.text.transformer, names)
    text |= {
        "vocab_size": config.text.vocab_size,
        "max_position_embeddings": config.text.context_length,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 2 if config.text.end_token_id is None else config.text.end_token_id,
    }
    data: dict[str, Any] = {
        "architectures": [CLASSES[kind][1]],
        "model_type": kind,
        "vision_config": vision | {"model_type": f"{kind}_vision_model"},
        "text_config": text | {"model_type": f"{kind}_text_model"},
    }
    if kind == "clip":
        data["projection_dim"] = config.embed_dim
        data["logit_scale_init_value"] = config.init_logit_scale
        vision["projection_dim"] = text["projection_dim"] = config.embed_dim
    else:
        text["projection_size"] = config.embed_dim
    read = config_from_hf(data)
    pixels = replace(read.vision, mean=config.vision.mean, std=config.vision.std)
    refuse_losses(config, replace(read, vision=pixels), form="hf")
    return data


def _section_to(blocks: TransformerConfig, names: dict[str, str]) -> dict[str, Any]:
    return {
        "hidden_size": blocks.dim,
        "intermediate_size": blocks.hidden_dim,
        "num_hidden_layers": blocks.num_layers,
        "num_attention_heads": blocks.num_heads,
        "hidden_act": names[blocks.activation],
        "layer_norm_eps": blocks.norm_eps,
        "attention_dropout": 0.0,
    }
