"""Files that nobody put there as data: what systems and programs leave in folders and archives."""

import os
from pathlib import Path, PurePosixPath

_LEFT_BEHIND = frozenset(
    {
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir"),
        *("$recycle.bin", "system volume information", "lost+found"),
    }
)


def is_hidden(path: str | PurePosixPath) -> bool:
    """Whether a name, or one of the folders before it, is hidden: `.x`, `._x`, `__MACOSX` ..."""
    parts = path.split("/") if isinstance(path, str) else path.parts
    return any(
        (part[:1] == "." and part not in (".", "..")) or part.lower() in _LEFT_BEHIND
        for part in parts
    )


def tars_in(folder: Path | str) -> list[str]:
    """The paths of a folder's tars."""
    return [
        os.path.join(folder, name)
        for name in sorted(os.listdir(folder))
        if name.lower().endswith(".tar")
        and not is_hidden(name)
        and not os.path.isdir(os.path.join(folder, name))
    ]
