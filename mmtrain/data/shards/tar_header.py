"""One tar header at a time: ustar, GNU long names and pax, each checked before it is believed.

POSIX.1-2017, `pax`, and GNU tar's manual, "Basic Tar Format".
"""

import zlib
from typing import NamedTuple

BLOCK = 512
MAGIC = b"ustar"
MAGIC_OFFSET = 257

REGULAR = (b"0", b"\0", b"7")
FOLDER = b"5"
LINKS = (b"1", b"2")
SPARSE = b"S"
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
EXTENDED = (b"L", b"K", b"x", b"g")
"""Kinds whose content tells of the member behind them."""

_CHECKSUM = slice(148, 156)
_MAX_DIGITS = 20


class Header(NamedTuple):
    """What one sound header says."""

    name: str
    """Path inside the tar; bytes that are no UTF-8 are written as escapes."""
    size: int
    """Bytes of content."""
    kind: bytes
    """The type flag."""


def parse_header(block: bytes) -> Header | str:
    """The fields of one 512-byte header, or what is wrong with it."""
    if len(block) < BLOCK:
        return "cut inside a header"
    stored = _number(block[_CHECKSUM])
    # The low half of Adler-32 from 0 is the sum of the bytes (modulo 65521), at a twentieth of the
    # cost of sum(). The checksum is taken as if its own field were eight spaces.
    total = (zlib.adler32(block, 0) & 0xFFFF) - sum(block[_CHECKSUM]) + 8 * 32
    if stored is None or ((stored - total) % 65521 and stored != _signed_sum(block)):
        return "a header's checksum is wrong"
    size = _number(block[124:136])
    if size is None:
        return "a header's size is no number"
    name = _text(block[:100])
    if block[MAGIC_OFFSET : MAGIC_OFFSET + 6] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = f"{prefix}/{name}"
    return Header(name, size, block[156:157])


def _signed_sum(block: bytes) -> int:
    """The checksum of some old writers, which added signed bytes."""
    values = memoryview(block).cast("b")
    return sum(values) - sum(values[_CHECKSUM]) + 8 * 32


def _number(field: bytes) -> int | None:
    """A numeric field: octal digits, or GNU's base 256 for files of 8 GiB and more."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        return None
    return int(digits or b"0", 8)  # some writers leave a folder's size empty


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def parse_extended(kind: bytes, data: bytes) -> tuple[str | None, int | None] | str:
    """What an extended header's content says of the next name and size, or what is wrong."""
    if kind == b"L":
        return _text(data), None
    if kind != b"x":
        return None, None
    records = _pax_records(data)
    if records is None:
        return "an extended header is malformed"
    if any(key.startswith(b"GNU.sparse") for key in records):
        name = _text(records.get(b"GNU.sparse.name", b"a file"))
        return f"{name} is a sparse member, which is not read: pack it without --sparse"
    size = records.get(b"size")
    if size is not None and not (size.isdigit() and len(size) <= _MAX_DIGITS):
        return "an extended header's size is no number"
    name = records.get(b"path")
    return None if name is None else _text(name), None if size is None else int(size)


def _pax_records(data: bytes) -> dict[bytes, bytes] | None:
    """`LENGTH KEY=VALUE\\n` records; None where they are malformed."""
    records: dict[bytes, bytes] = {}
    while data:
        digits, space, _ = data[:_MAX_DIGITS].partition(b" ")
        if not space or not digits.isdigit():
            return None
        record = data[: int(digits)]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) != int(digits) or record[-1:] != b"\n" or not equals:
            return None
        records[key] = value
        data = data[len(record) :]
    return records
