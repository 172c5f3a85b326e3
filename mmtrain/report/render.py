"""Templates to pages: one file each, without scripts or network."""

from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from mmtrain import __version__
from mmtrain.errors import UsageError
from mmtrain.eval.intervals import Interval
from mmtrain.files import replace_file
from mmtrain.report.chart import short_number


def percent(value: float) -> str:
    """A fraction as a percentage with one digit."""
    return f"{100 * value:.1f} %"


def interval_text(interval: Interval) -> str:
    """The ends of an interval of a fraction, in percent."""
    return f"{100 * interval.low:.1f} – {100 * interval.high:.1f}"


def render(template: str, content: dict[str, Any]) -> str:
    """A page's HTML.

    Args:
        template: its file's name in this folder.
        content: what the template names; all of it must be there.
    """
    return _environment().get_template(template).render(version=__version__, **content)


@cache
def _environment() -> jinja2.Environment:
    """Once: a page that is drawn every second would compile its templates every second."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "short": short_number, "interval": interval_text}
    return environment


def write_page(path: Path, html: str) -> None:
    """Write a page, whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        # A caption from a .json may hold half a character, which UTF-8 cannot write.
        replace_file(path, html.encode("utf-8", "replace"))
    except OSError as error:
        raise UsageError(f"out = {path} cannot be written: {error.strerror}") from error
