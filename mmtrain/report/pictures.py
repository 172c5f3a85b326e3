"""Pictures of a run folder, as a page carries them."""

import base64
from pathlib import Path

from mmtrain.files import real_path

PICTURE_TYPES = {".webp": "image/webp", ".png": "image/png", ".jpg": "image/jpeg"}


def picture_uri(folder: Path, name: str) -> str | None:
    """A picture of the folder as a data URI; None if it is missing, none, or outside."""
    try:
        file = real_path(folder / name)
        kind = PICTURE_TYPES.get(file.suffix)
        if kind is None or not file.is_relative_to(real_path(folder)) or not file.is_file():
            return None
        return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
    except (OSError, ValueError):
        return None
