"""The recipe's section [data]."""

import math
import os
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mmtrain.data.images.decode import HIGHEST_MAX_IMAGE_PIXELS, MAX_IMAGE_PIXELS
from mmtrain.data.images.transforms import AugmentConfig, Interpolation, ResizeMode
from mmtrain.data.joins.joined import Missing
from mmtrain.data.mixture import MixtureSource, SourceSettings, check_captions, check_mixture
from mmtrain.data.order.mixture import MixtureBatches
from mmtrain.data.order.stream import MixtureEnd
from mmtrain.data.order.stretches import Last
from mmtrain.data.shards.source import OnDamage
from mmtrain.data.sources.source import IMAGE_KEY
from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.caches import GB, asked_for, is_same_folder, open_cache
from mmtrain.data.storage.patience import PATIENCE
from mmtrain.errors import UsageError
from mmtrain.limits import MOST_PROCESSES, check_choices, check_counts, idle_line
from mmtrain.ranks import is_alone, num_ranks
from mmtrain.settings.paths import PathText

_KEEPS = 2.0

_BY_RANGES = (
    *("mixture", "join", "image_key", "threads", "shuffle_group", "lanes", "last"),
    *("index_dir", "cache_dir", "verify", "on_damage"),
)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on: shards of images and captions, and what becomes of them."""

    train: PathText | tuple[PathText, ...] | None = None
    """Shards: paths, folders, globs such as `data/*.tar`, brace ranges such as
    `data/{00000..00099}.tar`, or a list of these, on this machine or as s3://, gs://, az://, http://
    and https:// addresses. Or one path of another kind: a .csv, .tsv or
    .jsonl manifest, a folder of class folders of images, a saved Hugging Face data set; or
    `synthetic:N`. Either this or [[data.mixture]]."""
    mixture: tuple[MixtureSource, ...] = ()
    """Several sets, each with its share of the samples; a section [[data.mixture]] for each."""
    mixture_end: MixtureEnd = "stop"
    """When a source has been gone through max_epochs times: `stop` ends the mixture there,
    `drop_source` goes on with the others, whose weights then count among themselves; with `repeat`
    every source starts anew, as often as the run's length asks."""
    mixture_batches: MixtureBatches = "mixed"
    """`mixed`: every batch is of all sources; `single`: each is of one source, and the weights say
    how many batches a source gets."""
    stream: bool = False
    """Read shards from their beginning, such as pipes and what servers without ranges send: exact
    to the shard, where a resumed run goes on."""
    allow_pipe: bool = False
    """Let a shell run what stands behind `pipe:` in `train`; with `stream`."""
    stream_buffer: int = 1000
    """Samples that are mixed with each other, in each process, with `stream`."""
    image_key: str = IMAGE_KEY
    """Column that holds the image: its path in a manifest, itself in a saved data set. In shards
    the extension of the images, where they have several or one that images do not have."""
    join: PathText | tuple[PathText, ...] = ()
    """Captions, labels or features that lie apart, joined to the samples by their keys: tables,
    Parquet files, folders of `mmtrain embed`, shards. Their columns come into the .json, in the
    place of fields of the same name; a column `txt` is the .txt."""
    join_key: str = "key"
    """The column of the samples' keys in what is joined."""
    join_missing: Missing = "bad"
    """A sample that has no row there: `bad`, so that another one takes its place, or `keep`, as it
    is; `data_unjoined` in metrics.jsonl counts these."""
    workers: int = 0
    """Processes per rank that read and decode. 0: the training process itself. The batches do not
    depend on it."""
    threads: int | None = None
    """Threads of each such process that read and decode the samples of a batch side by side. None:
    8 where shards are remote, else 1. The batches do not depend on it."""
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
    lanes: int = 1
    """Parts of like size that an epoch's shards are cut into and that are read side by side: each
    gives every batch equally many rows. Ranks own whole lanes where their number divides it, and
    read only these shards. The batches depend on the lanes, not on the ranks."""
    last: Last = "drop"
    """The rest of an epoch that fills no batch: `drop` leaves it out (another rest in every epoch),
    `mask` pads the last batch with rows that do not count."""
    index_dir: PathText | None = None
    """Where the shards' indexes and catalogues are kept. None: beside the shards or, where that
    cannot be written, in the user's cache folder."""
    cache_dir: PathText | None = None
    """A folder of this machine's that keeps what is read of remote shards, shared by all that name
    it. None: nothing is kept."""
    cache_gb: float | None = None
    """What `cache_dir` may hold, in 1e9 bytes; the shards that are wanted last are dropped first.
    None: what the folder was given last, or 50."""
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
    """Decode JPEGs at 1/2, 1/4 or 1/8 of their size where that leaves `fast_decode_keeps` times the
    model's: faster on large photographs, but not the exact pixels."""
    fast_decode_keeps: float | None = None
    """What `fast_decode` leaves of both sides, in the model's image size, at least. Half of
    photographs are within 52 dB of the exact pixels at 2, 47 at 1.4 and 42 at 1.1, which decodes
    images of 512 pixels for a model of 224 in two thirds of the time. None: 2."""
    max_bad_fraction: float = 0.01
    """The run stops when more than this part of the samples read is bad (replaced by others)."""

    def open_cache(self, *, world_size: int | None = None) -> Cache | None:
        """The cache, if there is to be one: within `caching` that one, where it is the same folder.

        Args:
            world_size: ranks that share the samples; None: all there are.

        Raises:
            UsageError: as `Cache`.
        """
        if self.cache_dir is None:
            return None
        asked = asked_for()
        if asked is not None and is_same_folder(asked.folder, Path(self.cache_dir)):
            return asked
        shares = _num_shares(world_size)
        return open_cache(
            self.cache_dir,
            max_bytes=None if self.cache_gb is None else int(self.cache_gb * GB),
            # Of a shard that many machines share each reads a small part, unless they own lanes.
            whole=shares <= 2 or self.lanes % shares == 0,
        )

    def opening(self, cache: Cache | None) -> dict[str, Any]:
        """How all of the section's data are opened, as `open_source` takes it."""
        return {
            "index_dir": self.index_dir,
            "verify": self.verify,
            "on_damage": self.on_damage,
            "retry_seconds": self.retry_seconds,
            "cache": cache,
        }

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "workers", least=0, most=MOST_PROCESSES)
        check_counts(self, "prefetch", most=MOST_PROCESSES)
        if self.threads is not None:
            check_counts(self, "threads", most=MOST_PROCESSES)
        check_counts(self, "shuffle_group", "lanes", most=sys.maxsize)
        check_captions(self.captions)
        self._check_sources()
        self._check_join()
        self._check_stream()
        if self.label_key == "":
            raise ValueError('label_key = "" names no field; leave it out for none')
        if not 1 <= self.max_image_pixels <= HIGHEST_MAX_IMAGE_PIXELS:
            raise ValueError(
                f"max_image_pixels = {self.max_image_pixels} must be within 1 and "
                f"{HIGHEST_MAX_IMAGE_PIXELS}, above which Pillow refuses"
            )
        if not 0 <= self.retry_seconds < math.inf:
            raise ValueError(f"retry_seconds = {self.retry_seconds} must be 0 or more seconds")
        if self.cache_gb is not None:
            if not 0 < self.cache_gb < math.inf:
                raise ValueError(
                    f"cache_gb = {self.cache_gb} must be above 0; leave out cache_dir for no cache"
                )
            if self.cache_dir is None:
                raise ValueError(f"cache_gb = {self.cache_gb} does nothing without cache_dir")
        if self.fast_decode_keeps is not None:
            if not 1 <= self.fast_decode_keeps < math.inf:
                raise ValueError(
                    f"fast_decode_keeps = {self.fast_decode_keeps} must be 1 or more: the model's "
                    "image size is what is needed"
                )
            if not self.fast_decode:
                raise ValueError(
                    f"fast_decode_keeps = {self.fast_decode_keeps} does nothing without "
                    "fast_decode = true"
                )
        if not 0 <= self.max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction = {self.max_bad_fraction} must be within 0 and 1")

    def decoded_at_least(self, image_size: int) -> int | None:
        """What both sides of an image keep as it is decoded; None: all."""
        if not self.fast_decode:
            return None
        keeps = _KEEPS if self.fast_decode_keeps is None else self.fast_decode_keeps
        return math.ceil(keeps * image_size)

    def _check_sources(self) -> None:
        if self.mixture and self.train is not None:
            raise ValueError(
                "train and mixture are both there, and either says what is trained on; leave train "
                "out, or name it in a [[data.mixture]] of its own"
            )
        if self.mixture:
            check_mixture(self.mixture, repeats=self.mixture_end == "repeat")
            return
        if self.train is None:
            raise ValueError(
                'train is missing; name shards, such as train = "data/*.tar", or several sets by '
                "[[data.mixture]]"
            )
        if idle := self._given("mixture_end", "mixture_batches"):
            raise ValueError(idle_line(idle, "without [[data.mixture]]"))

    def _given(self, *names: str) -> list[str]:
        """Those of some settings that are not as they are by default, with their values."""
        values = {name: getattr(self, name) for name in names}
        return [f'{n} = "{v}"' for n, v in values.items() if v != getattr(type(self), n)]

    def _check_stream(self) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        if not self.stream:
            check_idle = ("allow_pipe", "stream_buffer")
            idle = [name for name in check_idle if getattr(self, name) != defaults[name]]
            if idle:
                raise ValueError(idle_line(idle, "without stream = true"))
            return
        check_counts(self, "stream_buffer", most=sys.maxsize)
        for name in _BY_RANGES:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name} needs shards that are read by ranges, which stream = true does not; "
                    "leave out one of the two"
                )

    @property
    def joins(self) -> tuple[PathText, ...]:
        """What is joined."""
        return (self.join,) if isinstance(self.join, str) else self.join

    def _check_join(self) -> None:
        if self.join and self.mixture:
            raise ValueError(
                f"join = {', '.join(self.joins)} is of one set, and mixture has several; leave it "
                "out"
            )
        if not self.join and (idle := self._given("join_key", "join_missing")):
            raise ValueError(idle_line(idle, "without join"))

    def refuse_captions(self, data: str) -> None:
        """Of data whose texts are not captions.

        Args:
            data: what they are.

        Raises:
            UsageError: a setting of captions is there.
        """
        unset = {"captions": {"txt": 1.0}, "caption_lines": None, "label_key": None, "join": ()}
        if idle := [f"data.{n}" for n, value in unset.items() if getattr(self, n) != value]:
            raise UsageError(idle_line(idle, f"on {data}"))

    @property
    def only_train(self) -> PathText | tuple[PathText, ...]:
        """The set of a recipe without a mixture."""
        assert self.train is not None
        return self.train

    @property
    def sources(self) -> tuple[SourceSettings, ...]:
        """What is trained on, each with all its settings; without a mixture one without a name."""
        own = {
            "image_key": self.image_key,
            "captions": self.captions,
            "caption_lines": self.caption_lines,
            "label_key": self.label_key,
        }
        if not self.mixture:
            return (SourceSettings(name="", key="data", train=self.only_train, **own),)
        return tuple(source.with_defaults(own) for source in self.mixture)


def _num_shares(world_size: int | None) -> int:
    """Machines among which samples are shared out that so many ranks share."""
    # Without a process group the ranks are of somebody else's trainer.
    ranks = world_size or 1 if is_alone() else num_ranks()
    machines = max(1, ranks // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return machines if world_size is None else min(world_size, machines)
