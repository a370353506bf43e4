"""Templates of HTML pages: filled with escaped content, written in one step."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedvtc_edge.errors import RunError
from fedvtc_edge.storage.atomic import write_atomic

from . import wording


def fill(template: str, *, package: str = __package__, **content: Any) -> str:
    """Fill a template with our filters and style; all content is escaped.

    Args:
        template: Its file name.
        package: Where it lies; what is not there is looked for here.
        content: What it speaks of; ``say`` are our words unless it brings its own.
    """
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    page = _environment(package).get_template(template)
    words = {"say": wording, **content}
    return page.render(style=Markup(style), **words)  # noqa: S704 - our own file


@cache
def _environment(package: str) -> Environment:
    # Names of clients and classes are a user's or a peer's words: everything is escaped.
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader(__package__, "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for word in ("percent", "points", "size", "duration", "count"):
        environment.filters[word] = getattr(wording, word)
    return environment


def write(path: Path, html: str) -> Path:
    """Replace ``path`` in one step: a reader sees the old page or the new one, never half."""
    try:
        # A name may hold half a surrogate pair, which no encoding can write.
        write_atomic(path, html.encode("utf-8", errors="replace"), durable=False)
    except OSError as error:
        raise RunError(
            f"cannot write '{path}': {error}",
            hint="make the directory writable, or copy the run to a place that is",
        ) from error
    return path
