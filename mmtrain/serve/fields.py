"""The fields of a request's JSON, each checked as it is asked for."""

from typing import Any

from starlette.requests import Request

from mmtrain.files import parse_json
from mmtrain.serve.guard import Refusal, read_body

MAX_JSON_BYTES = 1 << 20
MAX_TEXT = 1000
"""Characters of a text, prompt or question."""
MAX_LABEL = 200
"""Characters of a label."""
MAX_LABELS = 1000


async def read_fields(request: Request) -> "Fields":
    """A request's fields; it may be as large as MAX_JSON_BYTES."""
    return Fields(await read_body(request, limit=MAX_JSON_BYTES, what="the request"))


class Fields:
    """The fields of a JSON object.

    Raises:
        Refusal: the body is no such object, or a field is missing, of another type or too large.
    """

    def __init__(self, body: bytes) -> None:
        try:
            data = parse_json(body)
        except ValueError as error:
            raise Refusal("the request is no JSON") from error
        if not isinstance(data, dict):
            raise Refusal("the request is no JSON object")
        self._data: dict[str, Any] = data

    def has(self, name: str) -> bool:
        """Whether there is such a field."""
        return name in self._data

    def raw(self, name: str, *, default: Any = None) -> Any:
        """A field whose form the caller checks."""
        return self._data.get(name, default)

    def text(self, name: str) -> str:
        """A text in one line."""
        return one_line(self.raw(name), name=name, most=MAX_TEXT)

    def prompt(self) -> str:
        """A text with a place for a label."""
        prompt = self.text("prompt") if self.has("prompt") else "{}"
        if "{}" not in prompt:
            raise Refusal("the prompt has no place for the label; put {} in it")
        return prompt

    def labels(self) -> list[str]:
        """Several texts, no two the same."""
        labels = self.raw("labels")
        if not isinstance(labels, list):
            raise Refusal("labels must be a list of texts")
        if not labels:
            raise Refusal("there are no labels; write at least one")
        if len(labels) > MAX_LABELS:
            raise Refusal(f"{len(labels):,} labels are too many; at most {MAX_LABELS:,}")
        return list(dict.fromkeys(one_line(one, name="a label", most=MAX_LABEL) for one in labels))

    def number(self, name: str, *, default: int, most: int) -> int:
        """A whole number from 1 on."""
        value = self.raw(name, default=default)
        if type(value) is not int or not 1 <= value <= most:
            raise Refusal(f"{name} must be a whole number from 1 to {most}")
        return value


def one_line(value: Any, *, name: str, most: int) -> str:
    """A text with its white space collapsed, of `most` characters at most."""
    return _bounded(" ".join(_characters(value, name=name).split()), name=name, most=most)


def lines(value: Any, *, name: str, most: int, may_be_empty: bool = False) -> str:
    """A text whose lines stay, of `most` characters at most."""
    text = _characters(value, name=name).strip()
    return text if may_be_empty and not text else _bounded(text, name=name, most=most)


def _characters(value: Any, *, name: str) -> str:
    if not isinstance(value, str):
        raise Refusal(f"{name} must be a text")
    # Half a character, which JSON can say, is no text for a tokenizer.
    return value.encode("utf-8", "replace").decode()


def _bounded(text: str, *, name: str, most: int) -> str:
    if not text:
        raise Refusal(f"{name} is empty")
    if len(text) > most:
        raise Refusal(f"{name} has {len(text):,} characters; at most {most:,}")
    return text
