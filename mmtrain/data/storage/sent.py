"""Whether files in a place are still what was sent: a store is not read, its etags are kept there.

A file that somebody overwrote with as many other bytes has its size, and another etag.
"""

import json
from collections.abc import Collection, Mapping

from mmtrain.data.storage.fetch import Checksum
from mmtrain.data.storage.place import Place, read_small
from mmtrain.files import parse_json


def keep_tags(place: Place, name: str, files: Collection[str], *, sent: Collection[str]) -> None:
    """Write down what files of a place are known by.

    Args:
        place: where they are.
        name: of the file there that says it.
        files: those that it shall name.
        sent: which of them were just sent; the others are still known by what they were.

    Raises:
        OSError: the place cannot be asked or written to.
    """
    now = place.tags()
    if not now:
        return
    before = {} if len(sent) == len(files) else _read_tags(place, name) or {}
    tags = now | {file: tag for file, tag in before.items() if file not in sent}
    kept = {file: tags[file] for file in sorted(files) if file in now}
    place.put(name, json.dumps(kept, indent=1).encode())


def unlike_sent(place: Place, name: str, wanted: Mapping[str, Checksum]) -> set[str]:
    """Those of some files that are not, or no longer, what was sent.

    Where nobody wrote down what they are known by, as of older copies, their sizes count in a
    store; where that cannot be read, all are sent again.

    Args:
        place: where they are.
        name: of the file that `keep_tags` wrote.
        wanted: size and hash of each.

    Raises:
        OSError: the place cannot be asked, or one of its files cannot be read.
    """
    if not wanted:
        return set()
    tags = _read_tags(place, name)
    return set(wanted) if tags is None else place.unlike(wanted, tags=tags)


def _read_tags(place: Place, name: str) -> dict[str, str] | None:
    """None: it is damaged."""
    try:
        tags = parse_json(read_small(place, name))
    except FileNotFoundError:
        return {}
    except ValueError:
        return None
    return tags if isinstance(tags, dict) else None
