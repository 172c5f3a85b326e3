"""How many of something, in words."""


def counted(num: float, noun: str) -> str:
    """`1 image`, `1,000 images`; of a noun that takes an s."""
    return f"{num:,.0f} {noun}{'' if num == 1 else 's'}"
