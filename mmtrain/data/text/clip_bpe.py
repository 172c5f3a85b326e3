"""CLIP's byte-pair encoding on the `tokenizers` library, id for id open_clip's `SimpleTokenizer`.

Radford et al. 2021, arXiv:2103.00020, section 2.4. The vocabulary is the 256 bytes, the same 256
as a word's last (`</w>`), one entry per merge, and the two special tokens: 49,408 in all.
"""

import functools
import gzip
import itertools
from collections.abc import Sequence
from importlib import resources

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel

from mmtrain.data.text.far_ids import refuse_far_ids

SOT = "<start_of_text>"
EOT = "<end_of_text>"

_TABLE = "bpe_simple_vocab_16e6.txt.gz"
_NUM_MERGES = 48_894  # of the 262,144 in the table

# Words that a worker has already cut, so that Rust is asked once per word and not once per caption
# (a caption then costs 5 us instead of 35). About 13 MB when full.
_MAX_CACHED_WORDS = 1 << 16
_SPACE = "\u0120"
"""How byte-level pieces write a space."""
_MAX_CACHED_CHARACTERS = 32

# Letters and numbers of Unicode 17 and 18, which the regular expressions of `tokenizers` (Unicode
# 16) do not know. Spelled out, so that ids do not change with that library's version either.
_NEW_LETTERS = (
    "558 58B-58C 88F C5C CDC 208F 209D-209F A7CE-A7CF A7D2 A7D4 A7DD A7E2 A7F1 AB6C-AB6D "
    "107BB-107BF 10940-10959 10EC5-10EC7 10ED9-10EEE 11B0A 11DB0-11DDB 11DF1 16EA0-16EB8 "
    "16EBB-16ED3 16FF2-16FF3 187F8-187FF 18CD6-18CDA 18D09-18D20 18D80-18DF2 18E00-19191 "
    "191A0-191D2 1B123-1B128 1B168 1D6A6 1DF1F-1DF24 1DF2B-1DF81 1DF90-1DF96 1DFCD-1DFFF "
    "1E6C0-1E6DE 1E6E0-1E6E2 1E6E4-1E6E5 1E6E7-1E6ED 1E6F0-1E6F4 1E6FE-1E6FF 2B73A-2B73F "
    "2B81E 2CEA2-2CEAD 323B0-33479 3D000-3FC3F"
)
_NEW_NUMBERS = "11DE0-11DE9 1246F 12475-1247F 12550-12686 16FF4-16FF6"
# The one character that no alternative of open_clip's expression matches: there it is no mark,
# because ignoring case makes it a variant of the letter iota, and no letter either. It vanishes.
_LOST = "\u0345"


def _character_class(ranges: str) -> str:
    """`41-43 61` as the inside of a regular expression's brackets: `A-Ca`."""
    return "".join(
        "-".join(chr(int(end, 16)) for end in span.split("-")) for span in ranges.split()
    )


def _any_case(literal: str) -> str:
    """A pattern for `literal` in any case, letter by letter.

    Not `(?i)`: that also folds pairs of letters into ligatures (the library's does), where the
    only foreign letter that Python's folds into one of ours is the long s.
    """
    forms = {letter: f"[{letter}{letter.upper()}]" for letter in literal if letter.isalpha()}
    forms["s"] = "[sSſ]"
    return "".join(forms.get(letter, letter) for letter in literal)


def _pieces() -> Regex:
    """What a text is cut into before merging; a piece never crosses white space."""
    letter = r"\p{L}" + _character_class(_NEW_LETTERS)
    number = r"\p{N}" + _character_class(_NEW_NUMBERS)
    literals = (SOT, EOT, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
    return Regex(
        "|".join(map(_any_case, literals))
        + rf"|[{letter}]+|[{number}]|[^\s{letter}{number}{_LOST}]+"
    )


def _byte_alphabet() -> list[str]:
    """One visible character for each byte, in the order of the vocabulary."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]


@functools.cache
def _published() -> Tokenizer:
    """The tokenizer of the merges table that travels in the package; built once per process."""
    path = resources.files("mmtrain.data.text") / "tokenizer_files" / _TABLE
    with path.open("rb") as packed, gzip.open(packed, "rt", encoding="utf-8") as lines:
        merges = [
            (left, right)
            for left, right in (
                line.split() for line in itertools.islice(lines, 1, _NUM_MERGES + 1)
            )
        ]
    alphabet = _byte_alphabet()
    words = itertools.chain(
        alphabet, (byte + "</w>" for byte in alphabet), map("".join, merges), (SOT, EOT)
    )
    vocabulary = {word: i for i, word in enumerate(words)}
    rust = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_pieces(), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return rust


@functools.cache
def _published_file() -> bytes:
    """What `ClipBpe().serialize()` writes, 1.7 MB: a process that trains twice writes it twice."""
    return _published().to_str().encode("utf-8")


@functools.lru_cache(maxsize=2)  # models that are compared share one
def _read(definition: bytes) -> Tokenizer:
    """The tokenizer of a file's content.

    Raises:
        ValueError: it is none, or one with ids beyond all models'.
    """
    try:
        rust = Tokenizer.from_str(definition.decode("utf-8"))
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"is not a tokenizer.json ({error})") from error
    refuse_far_ids(rust)
    return rust


class ClipBpe:
    """Turns cleaned texts into ids, a white-space-separated word at a time.

    Args:
        definition: a `tokenizer.json` written by `serialize`; None takes CLIP's published table.

    Raises:
        ValueError: `definition` is no tokenizer, or one without the special tokens.
    """

    file_name = "tokenizer.json"

    def __init__(self, definition: bytes | None = None):
        self._definition = definition
        if definition is None:
            self._rust = _published()
        else:
            self._rust = _read(definition)
        sot_id, eot_id = self._rust.token_to_id(SOT), self._rust.token_to_id(EOT)
        if sot_id is None or eot_id is None:
            raise ValueError(f"has no {SOT} or no {EOT}")
        self.vocab_size: int = self._rust.get_vocab_size()
        self.sot_id: int | None = sot_id
        self.eot_id: int | None = eot_id
        self.pad_id: int | None = 0
        self._spelled = [(self._rust.encode(SOT).ids, sot_id), (self._rust.encode(EOT).ids, eot_id)]
        self._known: dict[str, Sequence[int]] = {}

    def __reduce__(self):
        return ClipBpe, (self._definition,)

    def serialize(self) -> bytes:
        """The content of `file_name`."""
        if self._definition is None:
            return _published_file()
        return self._rust.to_str().encode("utf-8")

    def token_ids(self, texts: Sequence[str], *, limit: int) -> list[list[int]]:
        """The ids of each cleaned text, SOT and EOT left out; those after `limit` may lack."""
        known, rows = self._known, []
        for text in texts:
            row: list[int] = []
            for word in text.split():
                ids = known.get(word)
                row += self._cut(word) if ids is None else ids
                if len(row) >= limit:  # the rest of a 100 KB text would be cut off anyway
                    break
            rows.append(row)
        return rows

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, as it was cleaned, with a space after every piece that ends a word."""
        pieces = [str(self._rust.id_to_token(i)).replace("</w>", _SPACE) for i in ids]
        return ByteLevel().decode(pieces)

    def _cut(self, word: str) -> Sequence[int]:
        # One word a call: `encode_batch` would start threads, which do not survive a fork.
        ids = self._rust.encode(word, add_special_tokens=False).ids
        if "_of_text>" in word:
            for spelled, special in self._spelled:
                ids = _replace(ids, spelled, special)
        if len(word) <= _MAX_CACHED_CHARACTERS and len(self._known) < _MAX_CACHED_WORDS:
            self._known[word] = tuple(ids)
        return ids


def _replace(ids: list[int], spelled: list[int], special: int) -> list[int]:
    """`ids` with each run equal to `spelled` made the one id `special`.

    Texts may spell the special tokens, and open_clip reads them as such, but only where a piece
    begins: `!<end_of_text>` has none. The library's own special tokens match anywhere; a run of ids
    does not, since only a piece that *is* the special token can end in it.
    """
    out: list[int] = []
    for token in ids:
        out.append(token)
        if out[-len(spelled) :] == spelled:
            out[-len(spelled) :] = [special]
    return out
