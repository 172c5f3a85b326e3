"""Arguments of `open_loader` that nothing would read, refused as a recipe's and a command's are."""

from collections.abc import Iterator
from dataclasses import asdict, fields

from torch.utils.data import default_collate

from mmtrain.data.config import DataConfig
from mmtrain.data.mapped import Map
from mmtrain.data.shards.patterns import any_in_store
from mmtrain.errors import UsageError

_OF_TEXTS = ("captions", "caption_lines", "label_key")
_OF_IMAGES = (
    *("augment", "resize_mode", "interpolation"),
    *("max_image_pixels", "fast_decode", "fast_decode_keeps"),
)


def refuse_idle_arguments(
    config: DataConfig,
    *,
    image_size: int | None,
    map: Map | None,
    collate: object,
    batch_size: int | None,
    pin_memory: bool,
) -> None:
    """Refuse what has no effect beside the rest; arguments as `open_loader`.

    Raises:
        UsageError: naming the first.
    """
    makes = image_size is not None or map is not None
    lines = (
        (
            config.cache_dir is not None
            and not any_in_store([config.train, config.join, asdict(config)["mixture"]]),
            f"cache_dir = {config.cache_dir} has no effect: none of the data are in a store, and "
            "what is on this machine is not copied; leave it out",
        ),
        (
            not config.workers and config.prefetch != DataConfig.prefetch,
            f"prefetch = {config.prefetch} has no effect without workers; leave it out",
        ),
        (
            collate not in (default_collate, None) and map is None,
            "collate has no effect without map; leave it out",
        ),
        (
            collate not in (default_collate, None) and batch_size is None,
            "collate has no effect with batch_size = None, which hands on what map makes; leave it "
            "out",
        ),
        (
            pin_memory and not makes,
            "pin_memory = True has no effect without image_size or map: files are bytes; leave it "
            "out",
        ),
        *(
            (image_size is None, f"{told} has no effect without image_size; leave it out")
            for told in _given(config)
        ),
    )
    for holds, line in lines:
        if holds:
            raise UsageError(line)


def _given(config: DataConfig) -> Iterator[str]:
    """What is said of captions, labels and pixels: where files are handed on they are the
    caller's."""
    standard = DataConfig(train="any")
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in (*_OF_TEXTS, *_OF_IMAGES) and value != getattr(standard, field.name):
            yield f"{field.name} = {value}"
    for source in config.mixture:
        for name in _OF_TEXTS:
            if (value := getattr(source, name)) is not None:
                yield f"mixture[{source.name}].{name} = {value}"
