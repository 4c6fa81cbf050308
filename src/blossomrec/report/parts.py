"""What the sections of a page are made of; ``templates/parts.html`` draws each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from blossomrec.report.svg import SERIES, Drawing

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
    """

    text: str
    note: str = ""
    best: bool = False
    mark: Literal["", "better", "worse"] = ""
    against: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class TextTable:
    """A table as text; the first column names the rows."""

    caption: str
    head: Sequence[str]
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
