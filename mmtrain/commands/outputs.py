"""Files that commands write, looked at before anything is computed for them."""

from pathlib import Path

from mmtrain.errors import UsageError


def refuse_out(out: Path, option: str, suffix: str) -> None:
    """Refuse a file that could not be written, or is called as something else.

    Raises:
        UsageError: naming the option.
    """
    if out.suffix != suffix:
        raise UsageError(f"{option} {out} must end in {suffix}")
    if not out.parent.is_dir():
        raise UsageError(f"{option} {out} cannot be written: {out.parent} is no folder; make it")
