"""What a folder in Hugging Face's form says of its tokenizer: class, special and added tokens.

Older files say a part of it in files of their own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from mmtrain.errors import UsageError
from mmtrain.interop.foreign_config import read_json

CONFIG_FILE = "tokenizer_config.json"
JSON_FILE = "tokenizer.json"
MODEL_CONFIG_FILE = "config.json"
SPECIAL_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"

NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""The special tokens that every tokenizer may have, in the order in which they are added."""
OF_MODEL = {"clip": "CLIPTokenizer", "siglip": "SiglipTokenizer", "siglip2": "Siglip2Tokenizer"}
"""The class by a model's type where the folder names none."""

Token = str | AddedToken


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """What the files of a folder say."""

    folder: Path
    """Holds them."""
    kind: str
    """The class that transformers takes, without `Fast`."""
    config: dict[str, Any]
    """tokenizer_config.json; older files' special_tokens_map.json is laid over it."""
    added: dict[int, AddedToken]
    """Added tokens as the folder has them."""

    def named(self, **standard: str) -> dict[str, Token | None]:
        """Special tokens by name, `pad_token` and the like, in order; `standard` where not set."""
        by_content = {token.content: token for token in self.added.values()}
        found: dict[str, Token | None] = {}
        for name in NAMED:
            key = f"{name}_token"
            token = _token(self.config.get(key, standard.get(name)))
            found[key] = by_content.get(content_of(token), token) if token else None
        others = {
            key: _token(value)
            for key, value in self.config.items()
            if key.endswith("_token") and key not in found and isinstance(value, str | dict)
        }
        extra = self.config.get("extra_special_tokens")
        more = {k: _token(v) for k, v in extra.items()} if isinstance(extra, dict) else {}
        return found | others | more

    @property
    def extra(self) -> list[Token]:
        """Special tokens without a name."""
        listed = self.config.get("extra_special_tokens")
        if not listed:
            listed = self.config.get("additional_special_tokens") or []
        tokens = [] if isinstance(listed, dict) else [_token(token) for token in listed]
        return [token for token in tokens if token is not None]


def read_files(folder: Path) -> TokenizerFiles:
    """The files of a folder.

    Raises:
        UsageError: one of them is damaged, or says something that we do not compute.
    """
    path = folder / CONFIG_FILE
    config = dict(json_object(path)) if path.is_file() else {}
    kind = _class_name(folder, config)
    if config.get("split_special_tokens"):
        raise UsageError(f"{path}: split_special_tokens = true is not supported")
    for key in ("padding_side", "truncation_side"):
        if config.get(key, "right") not in ("left", "right"):
            raise UsageError(f"{path}: {key} = {config[key]} must be left or right")
    try:
        added = _read_added(folder, config)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{folder}: the added tokens cannot be read: {error}") from error
    return TokenizerFiles(folder=folder, kind=kind, config=config, added=added)


def _class_name(folder: Path, config: dict[str, Any]) -> str:
    """As AutoTokenizer chooses among the folder's own class and that of its model."""
    path = folder / MODEL_CONFIG_FILE
    model = json_object(path) if path.is_file() else {}
    own = config.get("tokenizer_class") or model.get("tokenizer_class") or ""
    own = str(own).removesuffix("Fast")
    model_type = str(model.get("model_type", ""))
    of_model = OF_MODEL.get(model_type, "")
    # Published SigLIP 2 folders name Gemma's class, which does not lower texts.
    return of_model if not own or (model_type == "siglip2" and own != of_model) else own


def _read_added(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    """By id. Without a list in the config, older files say them; these complete the config too."""
    if "added_tokens_decoder" in config:
        return {int(i): _made(token) for i, token in config["added_tokens_decoder"].items()}
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if (folder / SPECIAL_FILE).is_file():
        config |= json_object(folder / SPECIAL_FILE)
    added: dict[int, AddedToken] = {}
    if (folder / ADDED_FILE).is_file():
        # Only the list of tokenizer_config.json counts here, if there is one.
        extra = config.get("extra_special_tokens") or listed
        named = [config.get(f"{name}_token") for name in NAMED]
        special = {content_of(token) for token in map(_token, [*named, *extra]) if token}
        for content, number in json_object(folder / ADDED_FILE).items():
            is_special = content in special
            added[int(number)] = AddedToken(
                content, lstrip=False, rstrip=False, normalized=not is_special, special=is_special
            )
    if (folder / JSON_FILE).is_file():
        for token in json_object(folder / JSON_FILE).get("added_tokens") or []:
            added[int(token["id"])] = _made({k: v for k, v in token.items() if k != "id"})
    return added


def _made(token: Any) -> AddedToken:
    return AddedToken(**{key: value for key, value in token.items() if key != "__type"})


def _token(value: Any) -> Token | None:
    return _made({"special": True} | value) if isinstance(value, dict) else value


def content_of(token: Any) -> str:
    """How a text spells a token."""
    return token.content if isinstance(token, AddedToken) else str(token)


def json_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        UsageError: it is missing, no JSON, or holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UsageError(f"{path} is no JSON object")
    return content
