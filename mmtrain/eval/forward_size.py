"""How many samples a forward of an evaluation takes."""

FIXED_BATCH = 64
"""Where results must not depend on how they came about."""
FAST_BATCH = 256
"""Where they may, and nobody says how many."""


def forward_size(batch_size: int, *, fast: bool) -> int:
    """Samples of a forward: those asked for, if the last digits of a result may depend on it."""
    return batch_size if fast else FIXED_BATCH
