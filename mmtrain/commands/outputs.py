"""What a command refuses before anything is computed: outputs that cannot be written, options that
do nothing."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from mmtrain.errors import UsageError
from mmtrain.files import real_path


def refuse_out(out: Path, option: str, suffix: str) -> None:
    """Refuse a file that could not be written, or is called as something else.

    Raises:
        UsageError: naming the option.
    """
    if out.suffix != suffix:
        raise UsageError(f"{option} {out} must end in {suffix}")
    if not out.parent.is_dir():
        raise UsageError(f"{option} {out} cannot be written: {out.parent} is no folder; make it")


def refuse_overwriting(
    read: Iterable[Path | str | None], written: Mapping[str, Path | None]
) -> None:
    """What a command reads it must not write over, nor one output over another.

    Args:
        read: files of the command, where they are given.
        written: by option.

    Raises:
        UsageError: naming the option.
    """
    taken = {real_path(file) for file in read if file is not None}
    for option, path in written.items():
        if path is None:
            continue
        if path.is_dir():
            raise UsageError(f"{option} = {path} is a folder; name a file")
        if real_path(path) in taken:
            raise UsageError(f"{option} = {path} is another file of this command; name a new one")
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
