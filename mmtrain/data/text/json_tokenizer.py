"""Any tokenizer of the `tokenizers` library, as its `tokenizer.json` describes it."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from mmtrain.data.text.encoding import encoded
from mmtrain.data.text.far_ids import refuse_far_ids


class JsonTokenizer:
    """Turns cleaned texts into ids; start and end token are those of the file's own template.

    Args:
        definition: a `tokenizer.json`.

    Raises:
        ValueError: `definition` is no tokenizer, or puts more than one token around a text.
    """

    file_name = "tokenizer.json"

    def __init__(self, definition: bytes):
        self._definition = definition
        try:
            self._rust = Tokenizer.from_str(definition.decode("utf-8"))
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"is not a tokenizer.json ({error})") from error
        refuse_far_ids(self._rust)
        padding = self._rust.padding
        self._rust.no_padding()
        self._rust.no_truncation()
        self.vocab_size: int = max(self._rust.get_vocab(with_added_tokens=True).values()) + 1
        self.pad_id: int | None = None if padding is None else padding["pad_id"]
        # The template's own tokens belong to no text.
        whole = next(
            (
                found
                for text in ("a", *self._rust.get_vocab())
                if 0 in (found := encoded(self._rust, text)).sequence_ids
            ),
            encoded(self._rust, ""),
        )
        own = [place for place, text in enumerate(whole.sequence_ids) if text == 0]
        first, last = (own[0], own[-1]) if own else (0, -1)
        before, after = whole.ids[:first], whole.ids[last + 1 :]
        if len(before) > 1 or len(after) > 1:
            raise ValueError(f"puts {before} before and {after} after a text, more than one token")
        self.sot_id: int | None = before[0] if before else None
        self.eot_id: int | None = after[0] if after else None

    def __reduce__(self):
        return JsonTokenizer, (self._definition,)

    def token_id(self, token: str) -> int | None:
        """The id of a token as the file spells it."""
        return self._rust.token_to_id(token)

    def token(self, token_id: int) -> str | None:
        """The token of an id, as the file spells it."""
        return self._rust.id_to_token(token_id)

    def serialize(self) -> bytes:
        """The content of `file_name`."""
        return self._definition

    def token_ids(self, texts: Sequence[str], *, limit: int) -> list[list[int]]:
        """The ids of each cleaned text, without start and end token."""
        # One text a call: `encode_batch` would start threads, which do not survive a fork.
        return [encoded(self._rust, text, special=False).ids for text in texts]

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._rust.decode(list(ids))
