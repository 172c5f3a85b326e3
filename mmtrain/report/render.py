"""Templates to pages: one file each, without scripts or network."""

import re
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import jinja2

from mmtrain import __version__
from mmtrain.errors import UsageError
from mmtrain.eval.intervals import Interval
from mmtrain.files import replace_file
from mmtrain.report.chart import color_class, short_number

_CONTENTS = "<!-- contents -->"
_HEADING = re.compile(r"<h2>(.*?)</h2>")
_LEAST_LISTED = 4


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
    return _with_contents(
        _environment().get_template(template).render(version=__version__, **content)
    )


def _with_contents(html: str) -> str:
    """A page with a list of its headings, where it has the place for one and so many that somebody
    would look for them."""
    before, place, after = html.partition(_CONTENTS)
    titles = _HEADING.findall(after)
    if not place or len(titles) < _LEAST_LISTED:
        return before + after
    numbers = count(1)
    after = _HEADING.sub(lambda found: f'<h2 id="part-{next(numbers)}">{found[1]}</h2>', after)
    links = (f'<a href="#part-{number}">{title}</a>' for number, title in enumerate(titles, 1))
    return f'{before}<nav class="contents" aria-label="On this page">{" ".join(links)}</nav>{after}'


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
    environment.filters["color"] = color_class
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
