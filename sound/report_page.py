"""Render reports as self-contained HTML pages.

The jinja2 template ``report_page.html`` has the head, style, title, facts and tiles; the template of each page extends
it. Pages follow the reader's light or dark mode, in the colours of the plots.
"""

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from sound.feature_plots import THEMES

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent.parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Tile(NamedTuple):
    """A number in large type."""

    name: str
    value: str
    note: str = ""  # in small type
    verdict: str = ""  # a word next to the value
    tone: str = ""  # of the verdict: "good", "warn" or "bad"


def render_page(
    template: str, title: str, facts: Sequence[str] = (), tiles: Sequence[Tile] = (), **content: Any
) -> str:
    """Return a page as HTML; everything but ``Markup`` is escaped.

    Args:
        template: path of the page's template, relative to the project's root.
        title: title of the tab and of the page.
        facts: short facts below the title.
        tiles: tiles below the facts.
        **content: variables of ``template``.
    """
    page = _ENVIRONMENT.get_template(template)
    return page.render(title=title, facts=facts, tiles=tiles, themes=THEMES, **content)


def data_uri(content: bytes, kind: str) -> str:
    """Return ``content`` of MIME type ``kind`` as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def draw_picture(draw: Callable[[str], Figure], alt: str, dpi: int) -> Markup:
    """Return an embedded picture, drawn by ``draw(theme)`` for each theme; ``alt`` is its text alternative."""
    sources = {}
    for theme in THEMES:
        file = io.BytesIO()
        draw(theme).savefig(file, format="webp", dpi=dpi, pil_kwargs={"quality": 90})  # a fifth of a PNG
        sources[theme] = data_uri(file.getvalue(), "image/webp")
    dark = '<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    return Markup(f'<picture>{dark}<img src="{{light}}" alt="{{alt}}"></picture>').format(alt=alt, **sources)
