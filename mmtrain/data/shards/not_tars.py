"""Tells what never was a tar from a damaged one."""

from mmtrain.data.shards.tar_header import BLOCK, MAGIC, parse_header
from mmtrain.data.storage.file import File
from mmtrain.errors import UsageError

_MAGIC_WITHIN = 1 << 20
_NOT_TARS = {
    b"\x1f\x8b": "gzip-compressed; unpack it",
    b"\xfd7zXZ": "xz-compressed; unpack it",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; unpack it",
    b"BZh": "bzip2-compressed; unpack it",
    b"PK\x03\x04": "a zip; repack it as a tar",
    b"version https://git-lfs": "a git-lfs pointer; run git lfs pull",
}


def refuse_no_tar(file: File, *, key: str) -> None:
    """Tell apart what never was a tar from a damaged one.

    Raises:
        UsageError: the file is empty, a web page, compressed or the like.
    """
    head = file.read(0, BLOCK)
    what = next((what for magic, what in _NOT_TARS.items() if head.startswith(magic)), None)
    if not head:
        what = "empty; fetch it again"
    elif what is None and head.strip(b"\0") and isinstance(parse_header(head), str):
        # A first header that is damaged has others behind it.
        kind = "a web page, no tar" if head.lstrip()[:1] == b"<" else "no tar"
        if kind != "no tar" or MAGIC not in file.read(0, _MAGIC_WITHIN):
            what = f"{kind} (it begins {_first_words(head)}); fetch it again"
    if what is not None:
        raise UsageError(f"{key}: {file.path} is {what}")


def _first_words(head: bytes) -> str:
    return repr(head.lstrip()[:24].decode("utf-8", "replace"))
