"""The recipe's section [vqa.dialogues]."""

from dataclasses import dataclass
from typing import Literal, get_args

from mmtrain.limits import check_counts
from mmtrain.settings.paths import PathText

TooLong = Literal["refuse", "shorten"]


@dataclass(frozen=True, kw_only=True)
class DialogueDataConfig:
    """data.train are dialogues about images, which [vqa.generate] learns to go on with."""

    images: PathText | None = None
    """The folder from which relative paths of images count. None: that of the data's file."""
    max_length: int = 1024
    """Tokens of a dialogue at most, those of its images counted."""
    too_long: TooLong = "shorten"
    """A dialogue of more: `shorten` leaves out its oldest questions with their answers (never an
    image, nor what the system says), and where the last question is too long by itself it is a bad
    sample; with `refuse` it is one at once."""
    pack: bool = False
    """Compute the dialogues of a microbatch side by side in one row, none seeing another, instead
    of in rows that are padded to the longest."""

    def __post_init__(self) -> None:
        check_counts(self, "max_length", least=2)
        if self.too_long not in get_args(TooLong):
            choices = " or ".join(get_args(TooLong))
            raise ValueError(f'too_long = "{self.too_long}" is unknown; use {choices}')
