"""Where EmojiPairs' concepts and drawings come from, and which drawing shows which concept."""

import hashlib
import json
import re
import subprocess
import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Package:
    """One npm package, pinned to its content."""

    name: str
    version: str
    sha256: str
    """Of the packed `.tgz`."""

    def fetch(self, folder: Path) -> Path:
        """The package's archive in `folder`, brought by `npm pack` where it is not there yet."""
        plain_name = self.name.removeprefix("@").replace("/", "-")
        archive = folder / f"{plain_name}-{self.version}.tgz"
        if not archive.exists():
            folder.mkdir(parents=True, exist_ok=True)
            command = ["npm", "pack", "--silent", f"{self.name}@{self.version}"]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        if hashlib.sha256(archive.read_bytes()).hexdigest() != self.sha256:
            raise UsageError(f"{archive}: is not the {self.name} that we know; delete it")
        return archive


_TEXT_PINS = """
emojibase-data        17.0.0 d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a
unicode-emoji-json    0.9.0  ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401
cldr-annotations-full 48.2.0 28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1
"""
_ART_SCOPE = "@iconify-json/"
_ART_PINS = """
noto              1.2.9  3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad
noto-v1           1.2.5  2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37
twemoji           1.2.5  19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7
openmoji          1.2.29 03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5
fluent-emoji      1.2.7  8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b
fluent-emoji-flat 1.2.6  7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175
emojione          1.2.3  26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e
emojione-v1       1.2.3  6641d59d48a42823fdc2b84e7427e9f302944eb98d2c7d94d6e67c139e7b37b3
fxemoji           1.2.2  f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef
streamline-emojis 1.2.4  5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc
"""


def _pinned(pins: str, *, scope: str = "") -> list[Package]:
    rows = (line.split() for line in pins.split("\n") if line)
    return [Package(name=scope + name, version=v, sha256=sha256) for name, v, sha256 in rows]


EMOJIBASE, UNICODE_NAMES, CLDR = _pinned(_TEXT_PINS)
# Iconify's JSON copies of the art, in the order in which identical drawings are attributed.
DESIGNS = {
    package.name.removeprefix(_ART_SCOPE): package
    for package in _pinned(_ART_PINS, scope=_ART_SCOPE)
}

_SKIPPED_GROUPS = (2, 9)  # components of other emoji; flags, which nobody draws in a style
_SYMBOLS_GROUP = 8

# How far a name is from the concept's own; where two concepts claim a name, the nearer has it.
_OWN, _OTHER_STANDARD, _DESIGNERS, _CHARACTER, _SHORTCODE = range(5)
_NUMBERED = 5  # added for a drawing's name once its trailing number is cut off
_BY_CODE = -1  # the design itself says which character it drew


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One emoji, whoever draws it."""

    code: str
    """Its code points as `normal_code` writes them."""
    emoji: str
    name: str
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    family: str
    """What is left of the name without sex, age and direction: families are held out whole."""
    is_symbol: bool

    @property
    def caption(self) -> str:
        """The text that drawings of this concept are trained with."""
        return ", ".join((self.name, *self.keywords))

    def about(self) -> dict[str, Any]:
        """The fields that samples and class lists carry."""
        return {
            "concept": self.code.upper(),
            "emoji": self.emoji,
            "name": self.name,
            "keywords": list(self.keywords),
            "group": self.group,
            "subgroup": self.subgroup,
            "family": self.family,
        }


def normal_code(hexcode: str) -> str:
    """`1F3F3-FE0F` as `1f3f3`: lower case, without variation selectors and leading zeros."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f").lstrip("0")


def code_of(emoji: str) -> str:
    """The normal code of a string of characters."""
    return normal_code("-".join(f"{ord(character):x}" for character in emoji))


def name_key(name: str) -> str:
    """`Thumbs-Up Sign` and `thumbs_up` both as `thumbsup`."""
    plain = unicodedata.normalize("NFKD", re.sub("[-_]", " ", name.lower()))
    return re.sub(r"[^a-z0-9#*]|\b(with|and|of|the|sign|symbol)\b", "", plain)


def family_of(name: str) -> str:
    """The name without sex, age and direction; the whole name where nothing else is in it."""
    words = (
        "man woman men women person people boy girl mr mrs mx male female medium old older s"
    ).replace(" ", "|")
    rest = re.sub(rf"\b({words})\b|: .*|facing right|’s|'s", " ", name.lower())
    return " ".join(rest.split()) or name.lower()


def read_json(package: Package, folder: Path, path: str) -> Any:
    """One JSON file of a package."""
    with tarfile.open(package.fetch(folder)) as tar:
        content = tar.extractfile(f"package/{path}")
        assert content is not None, f"{package.name} has no {path}"
        return json.load(content)


def _annotations(folder: Path) -> dict[str, dict[str, list[str]]]:
    content = read_json(CLDR, folder, "annotations/en/annotations.json")
    annotations = content["annotations"]["annotations"]
    return {code_of(emoji): annotation for emoji, annotation in annotations.items()}


def load_concepts(folder: Path) -> dict[str, Concept]:
    """Every emoji by code, with names and keywords from Emojibase and CLDR."""
    annotations = _annotations(folder)
    messages = read_json(EMOJIBASE, folder, "en/messages.json")
    groups = {group["order"]: group["message"] for group in messages["groups"]}
    subgroups = {group["order"]: group["message"] for group in messages["subgroups"]}
    concepts = {}
    for entry in read_json(EMOJIBASE, folder, "en/data.json"):
        group = entry.get("group", _SKIPPED_GROUPS[0])
        if group in _SKIPPED_GROUPS:
            continue
        code, name = normal_code(entry["hexcode"]), entry["label"]
        words = entry.get("tags", []) + annotations.get(code, {}).get("default", [])
        keywords = dict.fromkeys(word.lower() for word in words if word.lower() != name.lower())
        concepts[code] = Concept(
            code=code, emoji=entry["emoji"], name=name, keywords=tuple(keywords),
            group=groups[group], subgroup=subgroups.get(entry.get("subgroup"), ""),
            family=family_of(name), is_symbol=group == _SYMBOLS_GROUP,
        )  # fmt: skip
    return concepts


class Design:
    """One designer's drawings, by the names that the designer gave them."""

    def __init__(self, name: str, folder: Path):
        package = DESIGNS[name]
        self.name = name
        self.license: str = read_json(package, folder, "info.json")["license"]["spdx"]
        self._set = read_json(package, folder, "icons.json")
        self._icons: dict[str, dict] = self._set["icons"]
        self._aliases: dict[str, dict] = self._set.get("aliases", {})
        chars = read_json(package, folder, "chars.json")
        self._name_of_code = {normal_code(code): icon for code, icon in chars.items()}

    def drawing(self, name: str) -> str | None:
        """The drawing that a name or an alias stands for; None where it is turned or mirrored."""
        if name in self._icons:
            return name
        alias = self._aliases.get(name, {})
        if alias.get("parent") not in self._icons or alias.keys() & {"hFlip", "vFlip", "rotate"}:
            return None
        return alias["parent"]

    def names(self) -> Iterator[tuple[str, str]]:
        """(code, name) for every name that this design gives to a character."""
        aliases: dict[str, list[str]] = {}
        for alias, target in self._aliases.items():
            aliases.setdefault(target["parent"], []).append(alias)
        for code, name in self._name_of_code.items():
            for spelling in (name, *aliases.get(name, ())):
                yield code, spelling

    def match(self, concepts: dict[str, Concept], index: dict[str, tuple[int, str]]):
        """(concept's code, drawing) pairs: by code, else by the nearest name; each drawing once.

        `index` gives the distance and code of every known name.
        """
        best = {
            code: (_BY_CODE, name)
            for code, name in self._name_of_code.items()
            if code in concepts and self.drawing(name)
        }
        for name in sorted([*self._icons, *self._aliases]):
            if not self.drawing(name):
                continue
            for spelling, added in ((name, 0), (re.sub(r"-\d+$", "", name), _NUMBERED)):
                found = index.get(name_key(spelling))
                if found and (found[1] not in best or best[found[1]][0] > found[0] + added):
                    best[found[1]] = found[0] + added, name
        used = set()
        for code, (_, name) in sorted(best.items(), key=lambda item: (item[1][0], item[0])):
            drawing = self.drawing(name)
            if drawing not in used:
                used.add(drawing)
                yield code, drawing

    def svg(self, drawing: str, *, size: int) -> str:
        """The drawing centred in a square of `size` pixels."""
        icon = {key: self._set.get(key, default) for key, default in _BOX.items()}
        icon |= self._icons[drawing]
        side = max(icon["width"], icon["height"])
        left = icon["left"] - (side - icon["width"]) / 2
        top = icon["top"] - (side - icon["height"]) / 2
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' width="{size}" height="{size}" viewBox="{left} {top} {side} {side}">'
            f"{icon['body']}</svg>"
        )


_BOX = {"width": 16, "height": 16, "left": 0, "top": 0}  # what Iconify assumes
_NAMING_DESIGNS = ("noto", "twemoji", "openmoji", "fluent-emoji-flat")
_SHORTCODES = ("cldr", "emojibase", "github", "iamcal", "joypixels")


def _all_names(
    concepts: dict[str, Concept], designs: dict[str, Design], folder: Path
) -> Iterator[tuple[str, str, int]]:
    """(code, name, distance) from every source; of equal names of a concept the first counts."""
    for concept in concepts.values():
        yield concept.code, concept.name, _OWN
    for emoji, entry in read_json(UNICODE_NAMES, folder, "data-by-emoji.json").items():
        yield code_of(emoji), entry["name"], _OTHER_STANDARD
    for code, annotation in _annotations(folder).items():
        if "tts" in annotation:
            yield code, annotation["tts"][0], _OTHER_STANDARD
    for design in _NAMING_DESIGNS:
        for code, name in designs[design].names():
            yield code, name, _DESIGNERS
    for source in _SHORTCODES:
        shortcodes = read_json(EMOJIBASE, folder, f"en/shortcodes/{source}.json")
        for hexcode, names in shortcodes.items():
            for name in names if isinstance(names, list) else [names]:
                yield normal_code(hexcode), name, _SHORTCODE
    for code in concepts:
        if "-" not in code and (name := unicodedata.name(chr(int(code, 16)), "")):
            yield code, name, _CHARACTER


def index_names(
    concepts: dict[str, Concept], designs: dict[str, Design], folder: Path
) -> dict[str, tuple[int, str]]:
    """The distance and code of the concept that each known name stands for, by `name_key`."""
    distances: dict[str, dict[str, int]] = {code: {} for code in concepts}
    for code, name, distance in _all_names(concepts, designs, folder):
        if code in distances:
            distances[code].setdefault(name_key(name), distance)
    index: dict[str, tuple[int, str]] = {}
    for code in sorted(distances):
        for key, distance in distances[code].items():
            if key and (key not in index or distance < index[key][0]):
                index[key] = distance, code
    return index
