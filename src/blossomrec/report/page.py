"""A page: tables, figures as inline SVG in its colours, and the templates around them.

``templates/parts.html`` draws each part.
"""

from __future__ import annotations

import functools
import io
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from blossomrec.errors import MissingExtraError

# matplotlib knows no CSS variables: these odd colours are put in their place afterwards.
INK, MUTED, RULE = "#0a0b01", "#0a0b02", "#0a0b03"
SERIES = tuple(f"#0a0c{number:02x}" for number in range(1, 10))
MARKERS = "osD^vPX<>"
WIDTH = 4.7  # inches; narrow enough that the text can be read on a phone


@dataclass(frozen=True)
class Drawing:
    """Inline SVG.

    Attributes:
        box: of the coordinates, the attribute ``viewBox``.
        alt: what it shows, for those who do not see it.
        body: the elements inside; text in them is escaped.
    """

    box: str
    alt: str
    body: str


def line_style(number: int) -> dict[str, Any]:
    """Colour and marker of the ``number``-th model."""
    return {
        "color": SERIES[number % len(SERIES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markeredgewidth": 0,
    }


def draw_estimate(
    axes: Any, row: float, value: float, low: float, high: float, number: int
) -> None:
    """A value with its interval."""
    style = line_style(number)
    axes.plot([low, high], [row, row], color=style["color"], linewidth=1.8, alpha=0.55)
    axes.plot([value], [row], linestyle="none", markersize=5.5, **style)


def new_axes(height: float) -> tuple[Any, Any]:
    """A figure of ``height`` inches and its axes; MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots") from error
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    return figure, axes


def finish(axes: Any, label: str, *, grid: str) -> None:
    """Label below; a grid along ``grid``, "x", "y" or none."""
    axes.set_xlabel(label, color=INK)
    axes.tick_params(colors=MUTED, labelcolor=INK, length=0, pad=5)
    if grid:
        axes.grid(axis=grid, color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)


def to_svg(figure: Any, alt: str) -> Drawing:
    """A drawing without outside names or fixed size, described by ``alt``."""
    import matplotlib

    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    text = io.StringIO()
    # Text stays text; without a salt the names inside would differ at every run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": alt, "font.size": 10}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    body = text.getvalue()
    body = body[body.index("<svg") :]
    name = f"figure-{zlib.crc32(body.encode()):08x}"
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', body)
    body = re.sub(r"<svg[^>]*>|</svg>", "", body)
    body = body.replace("xlink:href", "href")
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'href="#|url\(#', lambda found: f"{found[0]}{name}-", body)
    return Drawing(box[1] if box else "", alt, _themed(body).strip())


def _themed(body: str) -> str:
    for colour, variable in ((INK, "ink"), (MUTED, "muted"), (RULE, "rule")):
        body = body.replace(colour, f"var(--{variable})")
    for number, colour in enumerate(SERIES):
        body = body.replace(colour, f"var(--series-{number + 1})")
    return body


def render_page(template: str, /, **content: Any) -> str:
    """A page as a string.

    Args:
        template: file name in ``report/templates``.
        content: what the template names; text in it is escaped.

    Raises:
        jinja2.UndefinedError: the template names something that is not given.

    Example:
        >>> page = render_page("report.html", title="Recommenders compared", ...)
    """
    return environment().get_template(template).render(content)


@functools.cache
def environment() -> Environment:
    """The templates; text is escaped, and a name that is not given is an error."""
    return Environment(
        loader=PackageLoader("blossomrec.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


# One for each marker of the figures, in their order.
SWATCHES = "●■◆▲▼✚✖◀▶"


@dataclass(frozen=True)
class Cell:
    """A cell of a table that is more than text.

    Attributes:
        text: what it says.
        note: stands below, smaller.
        best: the best value of its column.
        mark: how it differs significantly, with a sign before the text; empty without.
        against: name of the model that ``mark`` compares with.
        prose: words, which may take several lines.
    """

    text: str
    note: str = ""
    best: bool = False
    mark: Literal["", "better", "worse"] = ""
    against: str = ""
    prose: bool = False

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class TextTable:
    """A table as text; the first column names the rows."""

    caption: str
    head: Sequence[str | Cell]
    rows: Sequence[Sequence[str | Cell]]


@dataclass(frozen=True)
class KeyEntry:
    """What the ``number``-th colour and marker of the figures stand for."""

    number: int
    name: str

    @property
    def colour(self) -> str:
        """As CSS has it."""
        return f"var(--series-{self.number % len(SERIES) + 1})"

    @property
    def swatch(self) -> str:
        """A character that looks like the marker."""
        return SWATCHES[self.number % len(SWATCHES)]


@dataclass(frozen=True)
class Figure:
    """A drawing with its heading, its caption and, where it needs one, a key of its own."""

    heading: str
    drawing: Drawing
    caption: str
    key: Sequence[KeyEntry] = ()


def key_of(names: Sequence[str]) -> list[KeyEntry]:
    """A key of all names, in the order of the colours."""
    return [KeyEntry(number, name) for number, name in enumerate(names)]
