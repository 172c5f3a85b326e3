"""A decoder that a run starts from: its shape under the recipe's, its tokenizer, its weights."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from mmtrain.data.text.language_tokens import LanguageTokens, define
from mmtrain.data.text.tokenizer import Tokenizer, TokenizerConfig
from mmtrain.errors import UsageError
from mmtrain.interop.canonical import show
from mmtrain.interop.foreign_config import read_json
from mmtrain.interop.hf_clip_files import CONFIG_FILE
from mmtrain.interop.hf_decoder_config import decoder_config_from_hf
from mmtrain.interop.hf_decoder_files import DecoderPackage, read_folder_tokenizer, read_hf_decoder
from mmtrain.interop.model_kind import refuse_other_kind
from mmtrain.loading.hub_models import model_folder
from mmtrain.models import DecoderConfig
from mmtrain.models.generate_answers import GenerateConfig
from mmtrain.nn import TransformerConfig
from mmtrain.nn.rope import RopeScaling
from mmtrain.settings.decode import encode
from mmtrain.settings.describe import NONE

KEY = "vqa.generate.init"
_CHOSEN = {"mask", "stochastic_depth", "text_length", "prompt", "rope_scaling", "transformer"}
_CHOSEN |= {"reads"}
"""Fields that are training's to choose, that the run fills in, or that are sections."""
_SECTIONS = {"": GenerateConfig, "transformer.": TransformerConfig, "rope_scaling.": RopeScaling}
_FIXED = {
    f"{path}{field.name}"
    for path, section in _SECTIONS.items()
    for field in fields(section)
    if field.name not in _CHOSEN
}
"""Keys of [vqa.generate] that say what a folder says."""
_TOKENIZER = ("context_length",)
"""Keys of [tokenizer] that a decoder's leaves open."""


def with_decoder(data: dict[str, Any], *, begun: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A recipe's dict with the shape of the decoder that vqa.generate.init names.

    Args:
        data: the recipe's.
        begun: the recipe that a run which goes on recorded. Where it started from the same decoder,
            it says its shape, and the folder is not read.

    Raises:
        UsageError: there is no such decoder, or a key says something else than it.
    """
    section = data.get("vqa", {})
    generate = section.get("generate", {}) if isinstance(section, dict) else {}
    init = generate.get("init", NONE) if isinstance(generate, dict) else NONE
    if not isinstance(init, str) or init == NONE:
        return data  # nothing to fill in, or for `decode` to refuse
    _refuse_other_tokenizer(data, init)
    was = {} if begun is None else begun.get("vqa", {}).get("generate", {})
    alike = was.get("init", NONE) == init
    found = was if alike else _section(_read_config(model_folder(init, key=KEY)))
    brought = dict(_flat(found))
    for name, value in _flat(generate):
        own = brought.get(name, NONE)
        if name in _FIXED and value != own:
            raise UsageError(
                f"vqa.generate.{name} = {show(value)}, but {KEY} = {init} has {show(own)}; leave "
                "it out"
            )
    blocks = generate.get("transformer", {})
    if not isinstance(blocks, dict):
        return data  # for `decode` to refuse
    filled = found | generate | {"transformer": found["transformer"] | blocks}
    return data | {"vqa": section | {"generate": filled}}


def read_decoder(init: str) -> DecoderPackage:
    """The decoder that vqa.generate.init names.

    Raises:
        UsageError: a file is missing or damaged, or the model is none that we can compute.
    """
    folder = model_folder(init, key=KEY)
    _refuse_no_decoder(folder)
    return read_hf_decoder(folder)


def decoder_tokenizer(init: str, *, context_length: int, chat: bool | None) -> Tokenizer:
    """The tokenizer that a decoder brings.

    Args:
        init: its folder.
        context_length: tokens of a question at most, those of the chat template counted.
        chat: ask by its chat template; None: where it has one.

    Raises:
        UsageError: the folder has no tokenizer, no template to ask by or no end token, or the
            template leaves no room for a question.
    """
    folder = model_folder(init, key=KEY)
    _refuse_no_decoder(folder)
    language = read_folder_tokenizer(folder)
    if language is None:
        raise UsageError(f"{KEY} = {init} holds no tokenizer (tokenizer.json, tokenizer.model)")
    if chat and not language.has_chat:
        raise UsageError(
            f"vqa.generate.chat = true, but {KEY} = {init} has no chat template; leave it out"
        )
    asks = language.has_chat if chat is None else chat
    try:
        model = LanguageTokens(define(language, chat=asks))
        if model.eot_id is None:
            raise ValueError("names no end token (eos_token), by which an answer ends")
        model.token_ids([""], limit=context_length - 1)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(
            f"{KEY} = {init}: {error}; tokenizer.context_length = {context_length}"
        ) from error
    config = TokenizerConfig(
        kind="language", path=model.file_name, context_length=context_length, clean="none",
        add_eot=False,
    )  # fmt: skip
    return Tokenizer(config, model)


def _read_config(folder: Path) -> DecoderConfig:
    _refuse_no_decoder(folder)
    path = folder / CONFIG_FILE
    return decoder_config_from_hf(read_json(path), source=str(path))


def _refuse_no_decoder(folder: Path) -> None:
    if not folder.exists():
        raise UsageError(f"{KEY} = {folder} does not exist; name a decoder's folder")
    refuse_other_kind(folder, "decoder", key=KEY)
    if not (folder / CONFIG_FILE).is_file():
        raise UsageError(
            f"{KEY} = {folder} holds no {CONFIG_FILE}; name a decoder's folder in Hugging Face's "
            "form"
        )


def _refuse_other_tokenizer(data: Mapping[str, Any], init: str) -> None:
    """The decoder's ids are those of its own tokenizer; a complete section is a run's record."""
    section, standard = data.get("tokenizer", {}), encode(TokenizerConfig())
    if isinstance(section, dict) and not (standard.keys() <= section.keys()):
        for key in (key for key in section if key not in _TOKENIZER):
            raise UsageError(
                f"tokenizer.{key} = {show(section[key])}, but {KEY} = {init} brings its own "
                f"tokenizer; leave it out (tokenizer.{_TOKENIZER[0]} may be said)"
            )
    model, vqa = data.get("model", {}), data.get("vqa", {})
    start = model.get("init", NONE) if isinstance(model, dict) else NONE
    if "classify" in vqa and start != NONE:
        raise UsageError(
            f"model.init = {start} brings a text tower that [vqa.classify] reads questions by, and "
            f"{KEY} = {init} another tokenizer; leave one of the three out (model.vision_init "
            "starts the image tower alone)"
        )


def _section(config: DecoderConfig) -> dict[str, Any]:
    """A decoder's shape as [vqa.generate] says it, heads and widths written out."""
    blocks = config.transformer
    found = encode(config)
    found["transformer"] |= {
        "num_kv_heads": blocks.kv_heads,
        "head_dim": blocks.head_size,
        "ff_dim": blocks.hidden_dim,
    }
    return found | {"learned_positions": found.pop("positions") == "learned"}


def _flat(data: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
