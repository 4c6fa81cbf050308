"""What is shown on a terminal: wide tables without loss, characters that it does not have."""

from __future__ import annotations

import codecs
import os
import sys
from io import TextIOWrapper
from typing import Any, TextIO, cast

from rich.console import Console, Group
from rich.measure import Measurement
from rich.rule import Rule
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

# A file or a pipe has no width.
UNLIMITED = 10_000
RULE_WIDTH = 80
PLAIN = {"–": "-", "−": "-", "…": "...", "·": "-", "─": "-", "▲": "^", "▼": "v"}


def show_everything() -> None:
    """Let standard output and error replace what their encoding cannot write."""
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        # Others than Python's own, such as those of a notebook, take any text.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="plain")


def console(file: TextIO | None = None) -> Console:
    """A console on standard output: a terminal as wide as it is, anything else without an end."""
    made = Console(file=cast(TextIO, _Replacing(file or sys.stdout)))
    # What the variable COLUMNS says holds everywhere.
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = UNLIMITED
    return made


def show(where: Console, *parts: Any) -> None:
    """Print tables and texts so that no figure is cut, however narrow the terminal."""
    for part in parts:
        if isinstance(part, Group):
            show(where, *part.renderables)
        elif isinstance(part, Table):
            options = where.options.update(width=_fit(part, where))
            # Rendered first: printing takes no width over that of the terminal.
            lines = Segments(list(where.render(part, options)))
            where.print(lines, crop=False, soft_wrap=True, end="")
        else:
            where.print(part, soft_wrap=isinstance(part, Text) and where.width == UNLIMITED)


def show_rule(where: Console, title: str) -> None:
    """A heading across the terminal."""
    where.print(Rule(title), width=min(where.width, RULE_WIDTH))


def _fit(table: Table, where: Console) -> int:
    """Make a table narrower until it fits; gives the width it has to be printed with.

    First its frame goes, then cells are wrapped between words. What is still too wide is left to
    the terminal, which breaks lines and loses nothing.
    """
    unlimited = where.options.update(width=UNLIMITED)
    if Measurement.get(where, unlimited, table).maximum <= where.width:
        return where.width
    table.box, table.pad_edge, table.padding = None, False, (0, 1, 0, 0)
    cells = [[column.header, *column.cells] for column in table.columns]
    sizes = [[Measurement.get(where, unlimited, one) for one in column] for column in cells]
    least = [max(size.minimum for size in column) for column in sizes]
    wanted = [max(size.maximum for size in column) for column in sizes]
    gaps = len(least) - 1
    spare = max(0, where.width - gaps - sum(least))
    share = min(1.0, spare / max(1, sum(wanted) - sum(least)))
    for column, low, high in zip(table.columns, least, wanted, strict=True):
        column.width = low + int((high - low) * share)
    return max(where.width, gaps + sum(least))


class _Replacing:
    """A stream that writes a table in ASCII where its encoding lacks a single character of it.

    What is replaced in one row is then replaced in all.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            text.encode(self.stream.encoding or "utf-8")
        except UnicodeEncodeError:
            text = _in_ascii(text)
        return self.stream.write(text)


def _in_ascii(text: str) -> str:
    """Dashes and the like as ASCII has them, other characters by their number."""
    shown = text.translate(str.maketrans(PLAIN))
    return shown.encode("ascii", "backslashreplace").decode()


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that a stream lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return _in_ascii(error.object[error.start : error.end]), error.end
