"""How many of something, in words."""


def counted(num: float, noun: str, plural: str = "s") -> str:
    """`1 image`, `1,000 images`; `plural` is what the noun takes."""
    return f"{num:,.0f} {noun}{'' if num == 1 else plural}"
