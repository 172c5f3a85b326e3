"""The recipe's section [data]."""

import math
import sys
from dataclasses import dataclass, field
from typing import get_args

from mmtrain.data.images.decode import HIGHEST_MAX_IMAGE_PIXELS, MAX_IMAGE_PIXELS
from mmtrain.data.images.transforms import AugmentConfig, Interpolation, ResizeMode
from mmtrain.data.order.plan import Last
from mmtrain.data.shards.source import OnDamage
from mmtrain.data.sources.source import IMAGE_KEY
from mmtrain.data.storage.patience import PATIENCE
from mmtrain.limits import MOST_PROCESSES, check_counts
from mmtrain.settings.paths import PathText


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on: shards of images and captions, and what becomes of them."""

    train: PathText | tuple[PathText, ...]
    """Shards: paths, folders, globs such as `data/*.tar`, brace ranges such as
    `data/{00000..00099}.tar`, or a list of these. Or one path of another kind: a .csv, .tsv or
    .jsonl manifest, a folder of class folders of images, a saved Hugging Face data set; or
    `synthetic:N`."""
    image_key: str = IMAGE_KEY
    """Column that holds the image: its path in a manifest, itself in a saved data set. In shards
    the extension of the images, where they have several or one that images do not have."""
    workers: int = 0
    """Processes per rank that read and decode. 0: the training process itself. The batches do not
    depend on it."""
    prefetch: int = 2
    """Batches that each worker makes ahead."""
    captions: dict[str, float] = field(default_factory=lambda: {"txt": 1.0})
    """Where captions are, with weights: `txt` is the .txt member, any other name a field of the
    .json (a string, or a list of which one is drawn). A sample draws among the places it has."""
    caption_lines: bool | None = None
    """true: every line of a text is a caption, of which one is drawn (CLIP benchmark's shards).
    false: a text is one caption, whatever its lines. None: that too, but data that have several
    lines wherever they are looked at are refused, since they may be either."""
    label_key: str | None = None
    """Field of the .json that tells which samples show the same concept, for losses with several
    positives. None: every sample is its own."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crops and flips."""
    resize_mode: ResizeMode = "shortest"
    """How the trained model's images are resized in evaluation: shortest (shorter side, then the
    centre), squash (SigLIP), longest (with black borders). Training crops at random. A model that
    a run starts from brings its own."""
    interpolation: Interpolation = "bicubic"
    """Filter of the resize, antialiased, in training and evaluation. A model that a run starts from
    brings its own."""
    shuffle_group: int = 32
    """Shards whose samples are mixed with each other; their order is shuffled too."""
    last: Last = "drop"
    """The rest of an epoch that fills no batch: `drop` leaves it out (another rest in every epoch),
    `mask` pads the last batch with rows that do not count."""
    index_dir: PathText | None = None
    """Where the shards' indexes are kept. None: beside the shards or, where that cannot be written,
    in the user's cache folder."""
    verify: bool = False
    """Check every file against its checksum as it is read; `mmtrain data index` makes these."""
    on_damage: OnDamage = "stop"
    """A damaged shard: `stop` refuses it, `use_rest` trains on what is left of it."""
    retry_seconds: float = PATIENCE
    """How long what a disk fails to read or open is tried again, before the run ends. A network
    disk may want minutes."""
    max_image_pixels: int = MAX_IMAGE_PIXELS
    """Height times width of an image at most; larger ones are bad samples."""
    fast_decode: bool = False
    """Decode JPEGs at 1/2, 1/4 or 1/8 of their size where that leaves twice the model's: faster on
    large photographs, but not the exact pixels."""
    max_bad_fraction: float = 0.01
    """The run stops when more than this part of the samples read is bad (replaced by others)."""

    def __post_init__(self) -> None:
        check_counts(self, "workers", least=0, most=MOST_PROCESSES)
        check_counts(self, "prefetch", most=MOST_PROCESSES)
        check_counts(self, "shuffle_group", most=sys.maxsize)
        if not self.captions:
            raise ValueError("captions = {} names no place; use { txt = 1.0 } for the .txt member")
        for name, weight in self.captions.items():
            if not (name and 0 < weight < math.inf):
                raise ValueError(
                    f"captions.{name} = {weight} must be above 0; leave out the others"
                )
        if self.label_key == "":
            raise ValueError('label_key = "" names no field; leave it out for none')
        for name, choices in (
            ("resize_mode", get_args(ResizeMode)),
            ("interpolation", get_args(Interpolation)),
            ("last", get_args(Last)),
            ("on_damage", get_args(OnDamage)),
        ):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} = {value!r} is unknown; use {' or '.join(choices)}")
        if not 1 <= self.max_image_pixels <= HIGHEST_MAX_IMAGE_PIXELS:
            raise ValueError(
                f"max_image_pixels = {self.max_image_pixels} must be within 1 and "
                f"{HIGHEST_MAX_IMAGE_PIXELS}, above which Pillow refuses"
            )
        if not 0 <= self.retry_seconds < math.inf:
            raise ValueError(f"retry_seconds = {self.retry_seconds} must be 0 or more seconds")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction = {self.max_bad_fraction} must be within 0 and 1")
