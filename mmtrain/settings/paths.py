"""`~` and `$VARIABLE` in settings that are paths, wherever a user writes one: recipe or words."""

import dataclasses
import os
import re
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Union

from mmtrain.errors import UsageError
from mmtrain.files import remove_partials, replacing_folder
from mmtrain.settings.decode import encode
from mmtrain.settings.describe import join
from mmtrain.settings.tagged import member_for, members

_MARK = "path"
PathText = Annotated[str, _MARK]
"""The type of a config's field that is a path, or where a path may stand: a glob, a set's name."""
_MODEL = "model"
ModelText = Annotated[PathText, _MODEL]
"""The type of a field that is a model's path, or its address on Hugging Face's hub."""

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|(?P<bare>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)\})")
# Also behind a set's name, as in torchvision:CIFAR10/train:~/data.
_HOME = re.compile(r"(?P<before>^|:)(?P<user>~[^/:]*)(?=/|$)")

_MISSING = re.compile(r"(?i)do(es)? not exist|no such file|is no folder|matches no file")
"""What messages say of a path that is not there."""

_LOGIN = re.compile(r"(?<=://)[^/?#\s]*@")
_SIGNED = re.compile(
    r"(?<=[?&])((?:x-amz-|x-goog-)?(?:signature|credential|security-token|sig|awsaccesskeyid|"
    r"(?:access_?)?token|api_?key|key|password|secret|policy|key-pair-id)=)[^&#\s:]+",
    re.IGNORECASE,
)


def mask_secrets(text: str) -> str:
    """The text with every login and signature in an address as `***`."""
    return _SIGNED.sub(r"\1***", _LOGIN.sub("***@", text)) if "://" in text else text


def refuse_secrets(text: str, key: str) -> None:
    """Addresses are recorded, in recipes, logs and names: none may hold what opens a door.

    Raises:
        UsageError: there is a login or a signature in it, which the message does not repeat.
    """
    if (masked := mask_secrets(text)) != text:
        if masked.lower().startswith("hf://***@"):
            raise UsageError(
                f"{key} = {masked}: what stands before the first @ has no owner, or is a login, "
                "which would be recorded; write hf://OWNER/NAME@REVISION, and set HF_TOKEN for "
                "what is private"
            )
        raise UsageError(
            f"{key} = {masked}: an address with a login or a signature would be recorded; leave it "
            "out and set the credentials where the store's own tools take them (a web server's in "
            "~/.netrc)"
        )


def expand_path(text: str, key: str) -> str:
    """The path that a user means: `~`, `~user`, `$NAME`, `${NAME}`, and `$$` for a dollar sign.

    Args:
        text: as written.
        key: the setting, for messages.

    Raises:
        UsageError: it is empty, a variable has no value, there is no such user, or an address holds
            a secret.
    """
    if not text.strip():  # the system takes it for the folder that one is in
        raise UsageError(f'{key} = "{text}" is empty; is a variable not set?')

    def variable(match: "re.Match[str]") -> str:
        if match["dollar"]:
            return "$"
        name = match["bare"] or match["braced"]
        if not (value := os.environ.get(name)):
            raise UsageError(
                f"{key} = {text}: the variable {name} is not set; set it, or write $$ for a dollar "
                "sign that belongs to the name"
            )
        return value

    def home(match: "re.Match[str]") -> str:
        folder = os.path.expanduser(match["user"])
        if folder == match["user"]:
            raise UsageError(
                f"{key} = {text}: there is no user {folder[1:] or '(none is set)'} whose home it "
                f"may mean; write ./{folder} for a file of that name"
            )
        return match["before"] + folder

    expanded = _HOME.sub(home, _VARIABLE.sub(variable, text))
    refuse_secrets(expanded, key)
    return expanded


def escape_path(text: str, key: str = "") -> str:
    """What `expand_path` makes the given path of again."""
    text = text.replace("$", "$$")
    return f"./{text}" if text.startswith("~") else text


def expand_paths(cls: type, data: dict[str, Any]) -> dict[str, Any]:
    """A copy of a section's TOML dict with every path expanded; what else it holds is not judged.

    Raises:
        UsageError: as `expand_path`.
    """
    return change_paths(cls, data, expand_path)


def escape_paths(cls: type, data: dict[str, Any]) -> dict[str, Any]:
    """The dict that `expand_paths` turns into the given one: what a recipe's file records."""
    return change_paths(cls, data, escape_path)


def change_paths(
    cls: type, data: dict[str, Any], change: Callable[[str, str], str]
) -> dict[str, Any]:
    """A copy of a section's TOML dict with every path, and its key, through `change`."""
    return _convert(cls, data, "", change, _MARK)


def change_models(
    cls: type, data: dict[str, Any], change: Callable[[str, str], str]
) -> dict[str, Any]:
    """A copy of a section's TOML dict with every model's path or address, and its key, through
    `change`."""
    return _convert(cls, data, "", change, _MODEL)


def _convert(
    annotation: Any, value: Any, key: str, change: Callable[[str, str], str], mark: str
) -> Any:
    """`value` with its paths changed; the object itself where the type does not fit it."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return change(value, key) if mark in args and isinstance(value, str) else value
    if isinstance(value, dict) and members(annotation):
        annotation = member_for(annotation, value)  # a wrong kind is for `decode` to refuse
    if dataclasses.is_dataclass(annotation) and isinstance(value, dict):
        types_of = typing.get_type_hints(annotation, include_extras=True)
        return {
            name: _convert(types_of.get(name), member, join(key, name), change, mark)
            for name, member in value.items()
        }
    if origin in (Union, types.UnionType):
        converted = (_convert(arm, value, key, change, mark) for arm in args)
        return next((each for each in converted if each is not value), value)
    if origin is tuple and isinstance(value, list):
        return [
            _convert(args[0], member, f"{key}[{i}]", change, mark) for i, member in enumerate(value)
        ]
    return value


@contextmanager
def telling_places(section: Any) -> Iterator[None]:
    """Within the context, a mistake about a relative path of the section that is not there also
    tells where it was looked for: a run may go on from another folder than it began in.

    Args:
        section: a config, of whose paths any may be missing.

    Raises:
        UsageError: what was raised, with the place.
    """
    try:
        yield
    except UsageError as error:
        told, paths = str(error), list[str]()
        change_paths(type(section), encode(section), lambda text, _: paths.append(text) or text)
        for text in sorted(paths, key=len, reverse=True):
            path = text.rpartition(":")[2]
            is_here = "://" in text or os.path.isabs(path) or os.path.exists(path)
            if not is_here and f"= {text}" in told and _MISSING.search(told):
                at = os.path.abspath(path)
                raise UsageError(f"{told} ({path} was looked for at {at})") from error
        raise


def refuse_existing(out: Path) -> None:
    """Refuse a folder to write that has something in it.

    Raises:
        UsageError: naming it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"out = {out} exists already; name a new folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Within the context a hidden folder is written, which then is `out`, whole, or is gone.

    Raises:
        UsageError: `out` has something in it, or another process has filled it meanwhile.
    """
    if out.is_dir():
        remove_partials(out, out.absolute().name)
    refuse_existing(out)
    try:
        with replacing_folder(out) as folder:
            yield folder
    except FileExistsError as error:
        if error.filename != str(out):
            raise
        refuse_existing(out)
        raise


def refuse_unwritable(out: Path, key: str) -> None:
    """Refuse a file or folder that could not be made, before anything is computed for it.

    Raises:
        UsageError: what it would lie in is no folder, or may not be written to.
    """
    folder = out.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"{key} = {out} cannot be written: {folder} is no folder; name another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"{key} = {out} cannot be written: nothing may be written in {folder}; allow it, or "
            "name another place"
        )
