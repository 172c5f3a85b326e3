"""Walks the members of a tar so that damage is told and never taken for the end.

`tarfile`, and what is built on it, takes a bad header in mid-file for the end of the archive: the
rest is lost without a word. Here each header's checksum counts, and after damage the walk goes on
at the next sound header.
"""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from mmtrain.data.shards.tar_header import (
    BLOCK,
    EXTENDED,
    FOLDER,
    LINKS,
    MAGIC,
    MAGIC_OFFSET,
    REGULAR,
    SPARSE,
    WITHOUT_CONTENT,
    Header,
    parse_extended,
    parse_header,
)
from mmtrain.data.storage.file import File

_RECORD = 20 * BLOCK
_CHUNK = 1 << 20
_MAX_EXTENDED_HEADER = 1 << 20


class Member(NamedTuple):
    """One regular file in a tar."""

    name: str
    """Path inside the tar; bytes that are no UTF-8 are written as escapes."""
    offset: int
    """Where its content begins, in bytes from the start of the tar."""
    size: int
    """Bytes of content."""
    header_crc: int
    """CRC-32 of the 512 bytes before the content."""


class Damage(NamedTuple):
    """A place where members were, or may have been, lost."""

    offset: int
    """Where it was seen, in bytes from the start of the tar."""
    reason: str
    """What is wrong."""


def scan(tar: File) -> Iterator[Member | Damage]:
    """Every member of a tar in order, and every damage where it was met.

    Raises:
        OSError: the file cannot be read.
    """
    return _Scan(tar).run()


class _Scan:
    """One walk along a tar's chain of headers."""

    def __init__(self, tar: File):
        self._tar = tar
        self._offset = 0
        # A member waits until the header behind it proves sound: see _resume.
        self._held: Member | None = None
        # What an extended header said of the next member.
        self._name: str | None = None
        self._size: int | None = None
        self._finished = False

    def run(self) -> Iterator[Member | Damage]:
        while self._offset < self._tar.size:
            block = self._tar.read(self._offset, BLOCK)
            if not block.strip(b"\0"):
                yield from self._end()
                continue
            header = parse_header(block)
            if isinstance(header, str):
                yield from self._resume(header)
            elif header.kind in EXTENDED:
                yield from self._extend(header)
            else:
                yield from self._member(header, block)
        yield from self._release()
        if not self._finished:
            yield Damage(self._tar.size, "no end marker: cut between members")

    def _release(self) -> Iterator[Member]:
        if self._held is not None:
            yield self._held
        self._held = None

    def _jump(self, offset: int) -> None:
        """Go on behind a damage, where an extended header's word counts no more."""
        self._offset, self._name, self._size = offset, None, None
        self._finished = offset >= self._tar.size

    def _member(self, header: Header, block: bytes) -> Iterator[Member | Damage]:
        yield from self._release()
        name = self._name or header.name
        length = header.size if self._size is None else self._size
        if header.kind in WITHOUT_CONTENT:
            length = 0
        content = self._offset + BLOCK
        if content + length > self._tar.size:
            # The tar is cut here, or the size is forged; sound headers may follow even so.
            yield Damage(self._offset, f"cut inside {name}")
            self._jump(_next_header(self._tar, content))
            return
        is_folder = header.kind == FOLDER or name.endswith("/")
        if header.kind in REGULAR and not is_folder:
            self._held = Member(name, content, length, zlib.crc32(block))
        elif not is_folder:
            yield Damage(self._offset, _without_data(header.kind, name))
        self._offset, self._name, self._size = _behind(content, length), None, None

    def _extend(self, header: Header) -> Iterator[Member | Damage]:
        yield from self._release()
        content = self._offset + BLOCK
        if header.size > _MAX_EXTENDED_HEADER or content + header.size > self._tar.size:
            found = "an extended header is too long"
        else:
            found = parse_extended(header.kind, self._tar.read(content, header.size))
        following = _behind(content, header.size)
        if isinstance(found, str):
            yield Damage(self._offset, found)
            # A member whose name or size is not known is lost too.
            after = parse_header(self._tar.read(following, BLOCK))
            if not isinstance(after, str):
                following = _behind(following + BLOCK, after.size)
            self._jump(min(following, self._tar.size))
            return
        name, size = found
        self._name = name if name is not None else self._name
        self._size = size if size is not None else self._size
        self._offset = following

    def _resume(self, reason: str) -> Iterator[Member | Damage]:
        """Go on at the next sound header after a bad one.

        Where bytes are missing, the member before swallowed the headers that follow it. So the
        search begins inside that member, and it is not whole if a sound header is found there.
        """
        begin = self._offset if self._held is None else self._held.offset
        found = _next_header(self._tar, begin)
        if self._held is not None and found < self._offset:
            yield Damage(self._held.offset, f"bytes are missing in {self._held.name}")
            self._held = None
        else:
            yield from self._release()
            yield Damage(self._offset, reason)
        self._jump(found)

    def _end(self) -> Iterator[Member | Damage]:
        """Judge zeros where a header should be: the tar's end, if its writer left it so."""
        position = self._offset
        while chunk := self._tar.read(position, _CHUNK):
            if chunk.strip(b"\0"):
                yield from self._resume("zeros before the end, or a second tar behind it")
                return
            position += len(chunk)
        yield from self._release()
        # Writers leave just the end marker (two blocks), or fill their last record. A long tail is
        # a download that had reserved its space; any other length, bytes lost further up.
        tail = self._tar.size - self._offset
        fills_record = self._tar.size % _RECORD == 0 and 2 * BLOCK <= tail < _RECORD + 2 * BLOCK
        if tail != 2 * BLOCK and not fills_record:
            yield Damage(self._offset, f"{tail} bytes of zeros at the end, as no writer leaves it")
        self._jump(self._tar.size)


def _without_data(kind: bytes, name: str) -> str:
    """Why a member of an odd kind cannot be read; fetching the tar again would not help."""
    if kind == SPARSE:
        return f"{name} is a sparse member, which is not read: pack it without --sparse"
    if kind in LINKS:
        return (
            f"{name} is a link, which holds no data: pack what it leads to (tar --dereference "
            "--hard-dereference)"
        )
    return f"{name} is a special file, which holds no data: leave it out"


def _behind(content: int, length: int) -> int:
    """Where the header after some content is; whole blocks, though not always aligned to them."""
    return content + -(-length // BLOCK) * BLOCK


def _next_header(tar: File, begin: int) -> int:
    """Where the next sound header starts, aligned or not; the tar's size if there is none."""
    position = begin
    while position < tar.size:
        chunk = tar.read(position, _CHUNK + BLOCK)
        at = chunk.find(MAGIC)
        while at >= 0:
            start = position + at - MAGIC_OFFSET
            if start >= begin and not isinstance(parse_header(tar.read(start, BLOCK)), str):
                return start
            at = chunk.find(MAGIC, at + 1)
        position += _CHUNK
    return tar.size
