"""A .zip of images, as data sets are handed out: read in place, without unpacking it."""

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mmtrain.data.images.decode import has_image_name
from mmtrain.data.order.plan import even_pieces
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.folder_listing import TEXTS
from mmtrain.data.sources.image_paths import image_extension
from mmtrain.data.storage.hidden_names import is_hidden
from mmtrain.errors import UsageError

ZIP = ".zip"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, length of the name, length of the extra field."""
_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class _Member(NamedTuple):
    name: str
    start: int
    packed: int
    size: int
    method: int
    crc: int


class ZipSource:
    """Images with what lies beside them in the archive: `a.txt` its caption, `a.json` further
    fields, at any depth; an image is a sample.

    The archive is opened anew for each read, so it may be shared by any number of processes.

    Args:
        path: the archive.
        key: the setting that the path came from, for messages.

    Raises:
        UsageError: it cannot be read, holds no images, or is packed in a way that is not read.
    """

    def __init__(self, path: Path, *, key: str = "data.train") -> None:
        self.path, told = path, f"{key} = {path}"
        try:
            with zipfile.ZipFile(path) as archive:
                infos = [info for info in archive.infolist() if not info.is_dir()]
        except OSError as error:
            raise UsageError(f"{told} cannot be read: {error.strerror or error}") from error
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise UsageError(f"{told} is damaged or no zip ({error}); fetch it again") from error
        infos = [info for info in infos if not is_hidden(info.filename)]
        for info in infos:
            if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
                how = "encrypted" if info.flag_bits & _ENCRYPTED else "packed by another method"
                raise UsageError(f"{told}: {info.filename} is {how}; unpack it and name the folder")
        members = {info.filename: _member(info) for info in infos}
        self._images = sorted((n for n in members if has_image_name(n)), key=lambda n: n.split("/"))
        if not self._images:
            raise UsageError(f"{told} holds no images; name an archive of images")
        self._members = [_beside(name, members) for name in self._images]
        self.num_samples = len(self._images)
        self.shard_sizes = even_pieces(self.num_samples)
        digest = hashlib.blake2b(digest_size=16)
        for each in sorted(member for some in self._members for member in some.values()):
            digest.update(f"{each.name} {each.size} {each.crc}\n".encode())
        self._fingerprint = digest.hexdigest()

    @property
    def fingerprint(self) -> str:
        """Of the names, sizes and checksums of what is read."""
        return self._fingerprint

    def key(self, sample: int) -> str:
        """The image's path in the archive."""
        return self._images[sample]

    def place(self, sample: int) -> str:
        """The archive."""
        return str(self.path)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The image under its extension, and the files beside it under theirs.

        Raises:
            SampleError: one of them is damaged.
            OSError: the archive cannot be read just now.
        """
        members = self._members[sample]
        names = [name for name in members if wanted is None or name in wanted]
        with self.path.open("rb") as file:
            return {name: _content(file, members[name]) for name in names}


def _member(info: zipfile.ZipInfo) -> _Member:
    return _Member(
        info.filename,
        info.header_offset,
        info.compress_size,
        info.file_size,
        info.compress_type,
        info.CRC,
    )


def _beside(image: str, members: dict[str, _Member]) -> dict[str, _Member]:
    """The files of a sample by extension: `a.txt` or `a.jpg.txt` beside `a.jpg`."""
    found = {image_extension(image): members[image]}
    for stem in (os.path.splitext(image)[0], image):
        found |= {kind: members[name] for kind in TEXTS if (name := f"{stem}.{kind}") in members}
    return found


def _content(file: BinaryIO, member: _Member) -> bytes:
    file.seek(member.start)
    head = file.read(_LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size or head[:4] != _SIGNATURE:
        raise SampleError("damaged in the archive", detail=member.name)
    _, name, extra = _LOCAL_HEADER.unpack(head)
    file.seek(name + extra, os.SEEK_CUR)
    packed = file.read(member.packed)
    try:
        # Never more than it says: a member may be made to unpack without end.
        unpack = zlib.decompressobj(-zlib.MAX_WBITS).decompress
        is_stored = member.method == zipfile.ZIP_STORED
        content = packed if is_stored else unpack(packed, member.size + 1)
    except zlib.error as error:
        raise SampleError("damaged in the archive", detail=f"{member.name}: {error}") from error
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise SampleError("damaged in the archive", detail=member.name)
    return content
