"""Train a SentencePiece tokenizer on captions.

    python tools/train_tokenizer.py shards/train-*.tar --vocab-size 4000 --out tokenizer
    python tools/train_tokenizer.py captions.txt --kind bpe --vocab-size 32000 --out tokenizer

Writes OUT/sentencepiece.model and OUT/tokenizer_config.json; a recipe names the first as
`tokenizer.path` with `kind = "sentencepiece"`. The same captions and options always give the same
model, byte for byte.
"""

import argparse
import io
import json
import random
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, get_args

import sentencepiece

from mmtrain.cli.endings import end_well
from mmtrain.cli.parser import Parser
from mmtrain.data.text.cleaning import CLEANINGS, Cleaning
from mmtrain.data.text.sentence_piece import SentencePieceModel
from mmtrain.data.text.tokenizer import CONFIG_FILE, Tokenizer, TokenizerConfig
from mmtrain.errors import UsageError

# The trainer sums over threads in their order, so that their number is part of the result.
_NUM_THREADS = 4
# SentencePiece drops longer captions without a word; they are cut instead.
_MAX_CHARACTERS = 4096
_SPECIAL_IDS = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}


def _parser() -> Parser:
    parser = Parser(prog="train_tokenizer", description=__doc__)
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="SOURCE",
        help="a tar shard (.tar), or a text file with one caption a line",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the folder to write"
    )
    parser.add_argument(
        "--vocab-size", type=int, required=True, help="number of ids, the 4 special ones (pad 0,"
        " start 1, end 2, unknown 3) and the 256 bytes of --byte-fallback counted",
    )  # fmt: skip
    parser.add_argument(
        "--kind", choices=("unigram", "bpe"), default="unigram",
        help="unigram language model or byte-pair encoding (default: unigram)",
    )  # fmt: skip
    parser.add_argument(
        "--byte-fallback", action=argparse.BooleanOptionalAction, default=True,
        help="write an unseen character as its UTF-8 bytes, not as unknown (default: yes)",
    )  # fmt: skip
    parser.add_argument(
        "--clean", choices=get_args(Cleaning), default="lower",
        help="what is done to every caption, now and when the tokenizer is used (default: lower)",
    )  # fmt: skip
    parser.add_argument(
        "--captions", default="txt", metavar="FIELD",
        help="where a shard's captions are: txt, or a field of the .json (default: txt)",
    )  # fmt: skip
    parser.add_argument(
        "--context-length", type=int, default=64, help="tokens at most, saved (default: 64)"
    )
    parser.add_argument(
        "--max-captions", type=int, default=1_000_000,
        help="train on a random draw of so many at most (default: 1000000)",
    )  # fmt: skip
    return parser


def captions_of(source: Path, field: str) -> Iterator[str]:
    """Every caption of a tar shard or of a text file, in order."""
    try:
        if source.suffix != ".tar":
            with source.open(encoding="utf-8") as lines:
                yield from (line.rstrip("\n") for line in lines if line.strip())
        else:
            with source.open("rb") as file:
                yield from _captions_of_tar(file, source, field)
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}; name a file that can be read") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{source}: is not UTF-8 ({error.reason}); convert it first") from error


def _captions_of_tar(file: IO[bytes], source: Path, field: str) -> Iterator[str]:
    suffix = ".txt" if field == "txt" else ".json"
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.name.endswith(suffix) else None
                if content is None:
                    continue
                text = content.read().decode("utf-8")
                yield from [text] if field == "txt" else _json_captions(text, member.name, field)
            end = tar.offset
    except tarfile.TarError as error:
        raise UsageError(f"{source}: is not a whole tar ({error}); fetch it again") from error
    # tarfile takes a damaged header for the end of the archive; only zeros may follow that.
    file.seek(end)
    if any(file.read()):
        raise UsageError(f"{source}: is damaged at byte {end}; fetch it again")


def _json_captions(text: str, member: str, field: str) -> list[str]:
    try:
        value = json.loads(text)[field]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--captions {field}: {member} has no such field; name another") from error
    captions = value if isinstance(value, list) else [value]
    if not all(isinstance(caption, str) for caption in captions):
        raise UsageError(f"--captions {field}: in {member} it is no text; name another")
    return captions


def draw(captions: Iterable[str], most: int) -> tuple[list[str], int]:
    """At most `most` captions, each equally likely, the same at every run; and how many of all."""
    rng = random.Random(0)
    drawn: list[str] = []
    seen = 0
    for seen, caption in enumerate(captions, start=1):
        if len(drawn) < most:
            drawn.append(caption)
        elif (place := rng.randrange(seen)) < most:
            drawn[place] = caption
    return drawn, seen


def train(captions: list[str], *, kind: str, vocab_size: int, byte_fallback: bool) -> bytes:
    """The bytes of a SentencePiece model trained on cleaned captions.

    Raises:
        UsageError: the captions do not hold `vocab_size` pieces, or need more.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            byte_fallback=byte_fallback,
            max_sentence_length=4 * _MAX_CHARACTERS,  # bytes
            num_threads=_NUM_THREADS,
            minloglevel=2,
            **_SPECIAL_IDS,
        )
    except RuntimeError as error:
        raise UsageError(f"--vocab-size {vocab_size}: {_reason(str(error))}") from error
    return model.getvalue()


def _reason(message: str) -> str:
    """The trainer's complaint, in terms of our options."""
    if most := re.search(r"value <= (\d+)", message):
        return f"the captions do not hold so many pieces; use {most[1]} or less"
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return f"special ids, bytes and single characters need more; use {least[1]} or more"
    return " ".join(message.rpartition("] ")[2].split()) or "the trainer failed"


def run(args: argparse.Namespace) -> None:
    """Read, train, write and report."""
    if (args.out / CONFIG_FILE).exists():
        raise UsageError(f"--out {args.out}: already holds a tokenizer; name another folder")
    if args.max_captions < 1:
        raise UsageError(f"--max-captions {args.max_captions}: use 1 or more")
    config = TokenizerConfig(
        kind="sentencepiece",
        path=SentencePieceModel.file_name,
        clean=args.clean,
        context_length=args.context_length,
    )
    everything = (text for source in args.sources for text in captions_of(source, args.captions))
    captions, num_found = draw(everything, args.max_captions)
    clean = CLEANINGS[args.clean]
    captions = [text for caption in captions if (text := clean(caption)[:_MAX_CHARACTERS])]
    if not captions:
        raise UsageError(
            f"--captions {args.captions}: no caption in {args.sources[0]}"
            + (f" and {len(args.sources) - 1} more" if len(args.sources) > 1 else "")
            + "; name another field or file"
        )
    definition = train(
        captions, kind=args.kind, vocab_size=args.vocab_size, byte_fallback=args.byte_fallback
    )
    tokenizer = Tokenizer(config, SentencePieceModel(definition))
    tokenizer.save(args.out)
    lengths = tokenizer.encode(captions)[1].sort().values
    cut = (lengths == tokenizer.context_length).double().mean().item()
    print(
        f"{args.out}: {tokenizer.vocab_size} ids from {len(captions)} of {num_found} captions;"
        f" tokens per caption: median {lengths[len(lengths) // 2]},"
        f" 95 % up to {lengths[len(lengths) * 95 // 100]}; {cut:.1%} fill or exceed"
        f" --context-length {tokenizer.context_length}"
    )


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 2, after one line on stderr, for a user's mistake."""
    return end_well(lambda: run(_parser().parse_args(arguments)), name="train_tokenizer")


if __name__ == "__main__":
    sys.exit(main())
