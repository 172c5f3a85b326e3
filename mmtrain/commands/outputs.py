"""What a command refuses before anything is computed: outputs that cannot be written, options that
do nothing."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from mmtrain.errors import UsageError
from mmtrain.files import real_path
from mmtrain.settings.paths import refuse_unwritable

RECORDS = (
    "run.json", "recipe.toml", "metrics.jsonl", "history.jsonl", "bad_*.jsonl", "run-files.json",
    "run-etags.json", "manifest.json", "state.json", "config.json", "*_config.json",
    "tokenizer.json", "vocab.json", "special_tokens_map.json", "*.index.json", "*.safetensors",
    "*.bin", "*.pt", "embed.json", "keys-*.json", "*.npy", "*.parquet", "*.tar",
)  # fmt: skip
"""Files of runs, checkpoints, models, embeddings and data, which no figure or page replaces."""


def refuse_out(out: Path, option: str, suffix: str) -> None:
    """Refuse a file that could not be written, or is called as something else.

    Raises:
        UsageError: naming the option.
    """
    if out.suffix != suffix:
        raise UsageError(f"{option} {out} must end in {suffix}")
    if not out.parent.is_dir():
        raise UsageError(f"{option} {out} cannot be written: {out.parent} is no folder; make it")
    refuse_record(out, option)


def refuse_record(out: Path, option: str) -> None:
    """Refuse to replace what a run, a checkpoint, a model or a data set is made of.

    Raises:
        UsageError: naming the option.
    """
    if out.exists() and any(fnmatch(out.name, record) for record in RECORDS):
        raise UsageError(
            f"{option} = {out} is a file of a run, a model or data, which would be lost; name a "
            "new one"
        )


def refuse_overwriting(
    read: Iterable[Path | str | None], written: Mapping[str, Path | None]
) -> None:
    """What a command reads it must not write over, nor one output over another.

    Args:
        read: files of the command, where they are given.
        written: by option; each is one that could be written.

    Raises:
        UsageError: naming the option.
    """
    taken = {real_path(file) for file in read if file is not None}
    for option, path in written.items():
        if path is None:
            continue
        if path.is_dir():
            raise UsageError(f"{option} = {path} is a folder; name a file")
        refuse_unwritable(path, option)
        if real_path(path) in taken:
            raise UsageError(f"{option} = {path} is another file of this command; name a new one")
        refuse_record(path, option)
        taken.add(real_path(path))


def refuse_idle(options: Mapping[str, object], why: str) -> None:
    """Refuse what was given and has no effect.

    Args:
        options: their values by name; None, False and nothing are options that were not given.
        why: where they have none, such as `with --merge, which reads no shard`.

    Raises:
        UsageError: naming the first that was given.
    """
    for option, value in options.items():
        if value is not None and value is not False:
            raise UsageError(f"{option} has no effect {why}; leave it out")
