"""How many of a thing a config may ask for. What is beyond was never meant, and is found before
memory is taken for it or a size overflows."""

from typing import Any

MOST = 1 << 20
"""Of anything that has an axis of a tensor: features, heads, tokens."""
MOST_LAYERS = 10_000
MOST_REGISTERS = 4096
"""Learned tokens beside the patches, which every patch attends to; published models have 4."""
MOST_PIXELS = 1 << 15
"""A side of an image or patch."""
MOST_STEPS = 1 << 36
"""Or epochs, where samples of the whole run are counted ahead."""
MOST_PROCESSES = 1024
"""Of one rank's workers, or batches that each makes ahead."""


def check_counts(config: Any, *names: str, least: int = 1, most: int = MOST) -> None:
    """Refuse fields of a config that count something and lie outside `least` to `most`.

    None is let pass.

    Raises:
        ValueError: naming the field, its value and the limit.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name} = {value} must be at least {least}")
        if value is not None and value > most:
            raise ValueError(f"{name} = {value} must be at most {most}")
