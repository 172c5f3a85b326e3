"""A conversation as chat templates take it."""

from collections.abc import Mapping
from typing import Any

Message = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`; templates may read more fields."""
Span = tuple[int, int]
"""The first character and the one behind the last."""
