"""The HTML of a report: one jinja2 template with the style of all, which loads nothing from elsewhere.

``report_page.html`` has the head, the style, title, facts and tiles; a page's own template extends it. It is light or
dark as the reader's system is, in the colours of the pictures.
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
    """A figure in large type."""

    name: str
    value: str
    note: str = ""  # in small type
    verdict: str = ""  # a word beside the value
    tone: str = ""  # of the verdict: "good", "warn" or "bad"


def render_page(
    template: str, title: str, facts: Sequence[str] = (), tiles: Sequence[Tile] = (), **content: Any
) -> str:
    """Return a page as HTML; what is no ``Markup`` is escaped.

    Args:
        template: of the page's own part, its path from the project's root.
        title: in the tab and over the page.
        facts: short ones, under the title.
        tiles: under the facts.
        **content: what ``template`` shows.
    """
    page = _ENVIRONMENT.get_template(template)
    return page.render(title=title, facts=facts, tiles=tiles, themes=THEMES, **content)


def data_uri(content: bytes, kind: str) -> str:
    """Return bytes of a MIME type as an address that a page can hold."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def draw_picture(draw: Callable[[str], Figure], alt: str, dpi: int) -> Markup:
    """Return a picture inside the page, drawn by ``draw(theme)`` for each theme; ``alt`` says in words what it is."""
    sources = {}
    for theme in THEMES:
        file = io.BytesIO()
        draw(theme).savefig(file, format="webp", dpi=dpi, pil_kwargs={"quality": 90})  # a fifth of a PNG
        sources[theme] = data_uri(file.getvalue(), "image/webp")
    dark = '<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    return Markup(f'<picture>{dark}<img src="{{light}}" alt="{{alt}}"></picture>').format(alt=alt, **sources)
