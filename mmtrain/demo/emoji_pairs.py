"""EmojiPairs, the data set in the package: one concept drawn by ten freely licensed emoji designs.

64 x 64 RGB drawings on white as lossless WebP, captioned with their Unicode names and keywords.
Eight designs to train on (8,538 pairs, 1,515 concepts); two that are never trained on, in drawings
of the same concepts (`val_twemoji`, `val_openmoji`); and 125 concepts taken out of all ten designs
(`unseen`). THIRD_PARTY.md names designers and licences; tools/build_emoji_pairs.py makes it all.
"""

import hashlib
import io
import json
import lzma
import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmtrain.errors import UsageError

_PACKED = Path(__file__).parent / "emoji"
_DEBUG = Path(__file__).parent / "debug"


@dataclass(frozen=True, kw_only=True)
class EmojiPairs:
    """Where the unpacked data set lies."""

    train: str
    """Glob of the training shards."""
    val_twemoji: Path
    """The seen concepts as Twemoji draws them, a design that is not trained on."""
    val_openmoji: Path
    """The seen concepts as OpenMoji draws them; black outlines, hard."""
    unseen: Path
    """All ten designs' drawings of the concepts that are not trained on."""
    classes_seen: Path
    """Classes for both `val_` tars: a JSON list of `{"id", "name"}`, the id being a sample's
    `concept`."""
    classes_unseen: Path
    """Classes for `unseen`, in the same form."""


@dataclass(frozen=True, kw_only=True)
class DesignSplit:
    """A training set without one of its designs and some concepts, to choose settings on."""

    train: str
    """Glob of the training shards without the design and the concepts."""
    val: Path
    """The design's drawings of concepts that the other designs show too."""
    classes: Path
    """Classes for `val`: all seen concepts, as for the real held-out designs."""
    unseen: Path
    """All eight designs' drawings of the concepts that were taken out."""
    classes_unseen: Path
    """Classes for `unseen`, in the same form."""


@dataclass(frozen=True, kw_only=True)
class DebugPairs:
    """A few pairs that lie unpacked in the package."""

    train: Path
    """One shard: 16 concepts in 4 training designs each."""
    classes: Path
    """The 16 classes."""


def debug_pairs() -> DebugPairs:
    """The pairs that debug recipes train on; nothing is unpacked."""
    return DebugPairs(train=_DEBUG / "train.tar", classes=_DEBUG / "classes.json")


def unpack_emoji_pairs(folder: Path) -> EmojiPairs:
    """Unpack the data set into `folder` (50 MB); what is there and whole already stays.

    Each file appears at once and complete, so that an interrupted call is simply repeated and
    several processes may call this together.

    Raises:
        UsageError: `folder` cannot be written, or the package's own files are damaged.
    """
    _make_folder(folder)
    manifest = json.loads((_PACKED / "manifest.json").read_text(encoding="utf-8"))
    for name, sha256 in manifest["tars"].items():
        if _sha256_of(folder / name) != sha256:
            _unpack(_PACKED / f"{name}.xz", folder / name, sha256)
    classes = json.loads((_PACKED / "classes.json").read_text(encoding="utf-8"))
    for split in ("seen", "unseen"):
        _write_whole(folder / f"classes_{split}.json", _class_list(classes[split]))
    return EmojiPairs(
        train=str(folder / "train-*.tar"),
        val_twemoji=folder / "val_twemoji.tar",
        val_openmoji=folder / "val_openmoji.tar",
        unseen=folder / "unseen.tar",
        classes_seen=folder / "classes_seen.json",
        classes_unseen=folder / "classes_unseen.json",
    )


def split_emoji_pairs(folder: Path, *, hold_out: str = "fxemoji") -> DesignSplit:
    """Take a training design and some concepts out of the training shards, into
    `folder/without_<hold_out>`.

    Settings are chosen on such a split, never on the two designs and the 125 concepts that the
    results are reported on. The concepts are those of one family in ten, by a hash, as those are.
    Unpacks the data set into `folder` first if need be; the same input gives the same bytes.

    Raises:
        UsageError: no training design is called `hold_out`, or as `unpack_emoji_pairs`.
    """
    pairs = unpack_emoji_pairs(folder)
    designs = json.loads((_PACKED / "stats.json").read_text(encoding="utf-8"))["vendors"]
    trained = sorted(name for name, splits in designs.items() if "train" in splits)
    if hold_out not in trained:
        raise UsageError(f"hold_out = {hold_out!r} is no training design; use {', '.join(trained)}")
    target = folder / f"without_{hold_out}"
    _make_folder(target)
    held_out: list[tuple[str, dict[str, bytes]]] = []
    unseen: list[tuple[str, bytes]] = []
    names: dict[str, str] = {}
    concepts: set[str] = set()
    for shard in sorted(folder.glob("train-*.tar")):
        kept = []
        for key, members in read_pairs(shard):
            about = json.loads(members["json"])
            pair = {f"{key}.{extension}": content for extension, content in members.items()}
            if _is_new(about["family"]):
                names[about["concept"]] = about["name"]
                unseen += pair.items()
            elif about["vendor"] == hold_out:
                held_out.append((about["concept"], pair))
            else:
                concepts.add(about["concept"])
                kept += pair.items()
        _write_whole(target / shard.name, tar_bytes(kept))
    shown = (member for concept, pair in held_out if concept in concepts for member in pair.items())
    _write_whole(target / f"val_{hold_out}.tar", tar_bytes(shown))
    _write_whole(target / "unseen.tar", tar_bytes(unseen))
    new = [{"concept": concept, "name": name} for concept, name in sorted(names.items())]
    _write_whole(target / "classes_unseen.json", _class_list(new))
    return DesignSplit(
        train=str(target / "train-*.tar"),
        val=target / f"val_{hold_out}.tar",
        classes=pairs.classes_seen,
        unseen=target / "unseen.tar",
        classes_unseen=target / "classes_unseen.json",
    )


def _is_new(family: str) -> bool:
    """Whether a family of concepts is taken out of a split; the data set's own took remainder 0."""
    return int(hashlib.sha256(family.encode("utf-8")).hexdigest(), 16) % 10 == 1


def licenses() -> dict[str, str]:
    """The licence of each design's drawings, as SPDX names it."""
    return json.loads((_PACKED / "stats.json").read_text(encoding="utf-8"))["licenses"]


def read_pairs(shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Each pair's key and its members' content by extension, in the shard's order."""
    with tarfile.open(shard, "r:") as tar:
        key, members = "", {}
        for info in tar:
            stem, _, extension = info.name.partition(".")
            if stem != key and members:
                yield key, members
                members = {}
            content = tar.extractfile(info)
            assert content is not None, f"{shard}: {info.name} is no file"
            key, members[extension] = stem, content.read()
        if members:
            yield key, members


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of `(name, content)`: no times, no owners, so that equal members give equal bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    # Two blocks of zeros end a tar; the padding to a tape's record of 10 KB is dropped.
    return buffer.getvalue()[: end + 2 * tarfile.BLOCKSIZE]


def _class_list(concepts: list[dict]) -> bytes:
    classes = [{"id": concept["concept"], "name": concept["name"]} for concept in concepts]
    return json.dumps(classes, ensure_ascii=False, indent=0).encode("utf-8")


def _unpack(packed: Path, target: Path, sha256: str) -> None:
    try:
        content = lzma.decompress(packed.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise UsageError(
            f"{packed}: cannot be unpacked ({error}); install mmtrain again"
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UsageError(f"{packed}: is damaged (SHA-256 differs); install mmtrain again")
    _write_whole(target, content)


def _sha256_of(path: Path) -> str | None:
    """None where there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}; name a folder that can be made") from error


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the new one, never a part."""
    partial = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".partial-", delete=False) as file:
            partial = Path(file.name)
            file.write(content)
        partial.chmod(0o644)
        os.replace(partial, path)
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise UsageError(f"{path}: {error.strerror}; name a folder that can be written") from error
