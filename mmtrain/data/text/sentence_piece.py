"""SentencePiece models (unigram and BPE, with or without byte fallback).

Kudo and Richardson 2018, arXiv:1808.06226.
"""

from collections.abc import Sequence

import sentencepiece


def load_processor(definition: bytes) -> sentencepiece.SentencePieceProcessor:
    """What reads texts by the model in a file's bytes.

    Raises:
        ValueError: they are none; what the library says of it tells nobody what to do.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        # An empty file would load as a model without pieces.
        if definition and processor.LoadFromSerializedProto(definition):
            return processor
    except RuntimeError as error:
        raise ValueError("is not a SentencePiece model, or is damaged; fetch it again") from error
    raise ValueError("is not a SentencePiece model: it is empty; fetch it again")


class SentencePieceModel:
    """Turns cleaned texts into ids with a trained model.

    Args:
        definition: the bytes of a `.model` file.

    Raises:
        ValueError: `definition` is no SentencePiece model.
    """

    file_name = "sentencepiece.model"

    def __init__(self, definition: bytes):
        self._definition = definition
        self._processor = load_processor(definition)
        self.vocab_size: int = self._processor.vocab_size()
        self.sot_id = _none_if_absent(self._processor.bos_id())
        self.eot_id = _none_if_absent(self._processor.eos_id())
        self.pad_id = _none_if_absent(self._processor.pad_id())

    def __reduce__(self):
        return SentencePieceModel, (self._definition,)

    def serialize(self) -> bytes:
        """The content of `file_name`."""
        return self._definition

    def token_ids(self, texts: Sequence[str], *, limit: int) -> list[list[int]]:
        """The ids of each cleaned text, without SOT and EOT."""
        # One thread: a loader's workers share the cores already.
        return self._processor.encode(list(texts), out_type=int, num_threads=1)

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._processor.decode(list(ids))


def _none_if_absent(token: int) -> int | None:
    return None if token < 0 else token
