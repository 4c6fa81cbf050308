import io
import re

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blossomrec import terminal


def table(columns=8, width=16):
    """A table of figures that is wider than most terminals."""
    made = Table()
    made.add_column("metric")
    for number in range(columns):
        made.add_column(f"column {number}", justify="right")
    rng = np.random.default_rng(0)
    for row in range(3):
        cells = (f"{value:.4f} ({value:+.1%})"[:width] for value in rng.random(columns))
        made.add_row(f"uni100_ndcg@{row}", *cells)
    return made


def printed(part, width, **options):
    file = io.StringIO()
    terminal.show(Console(file=file, width=width, **options), part)
    return file.getvalue()


def figures(text):
    return sorted(re.findall(r"[+\d.]+%?", text))


@pytest.mark.parametrize("width", [60, 80, 100, 400])
def test_no_figure_is_cut(width):
    whole, shown = printed(table(), 10_000), printed(table(), width)
    assert figures(shown) == figures(whole)
    assert "…" not in shown


def test_a_table_that_can_fit_fits():
    shown = printed(table(columns=5), 80)
    assert max(map(len, shown.splitlines())) <= 80
    assert printed(table(columns=2), 80).startswith("┏")


def test_a_pipe_has_no_width(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    file = io.StringIO()
    where = terminal.console(file)
    words = "word " * 100
    terminal.show(where, Text(words), table(columns=30))
    terminal.show_rule(where, "A title")
    first, *lines, rule = file.getvalue().splitlines()
    assert first == words
    assert len({len(line) for line in lines}) == 1 and len(lines[0]) > 400
    assert "A title" in rule and len(rule) == 80


@pytest.mark.parametrize(
    "encoding, shown",
    [
        ("utf-8", "café 👍 1–2 −0.5"),
        ("latin-1", "café \\U0001f44d 1-2 -0.5"),
        ("ascii", "caf\\xe9 \\U0001f44d 1-2 -0.5"),
    ],
)
def test_characters_that_an_encoding_lacks_are_replaced(monkeypatch, encoding, shown):
    file = io.BytesIO()
    stream = io.TextIOWrapper(file, encoding=encoding)
    monkeypatch.setattr("sys.stdout", stream)
    terminal.show_everything()
    stream.write("café 👍 1–2 −0.5")
    stream.flush()
    assert file.getvalue().decode(encoding) == shown


def test_what_is_replaced_in_a_row_is_replaced_in_all():
    shown = []
    for items in (["café"], ["café", "👍"]):
        made, file = Table(), io.BytesIO()
        made.add_column("item")
        for item in items:
            made.add_row(item)
        stream = io.TextIOWrapper(file, encoding="latin-1")
        terminal.show(terminal.console(stream), made)
        stream.flush()
        shown.append(file.getvalue().decode("latin-1"))
    assert "café" in shown[0]
    assert "caf\\xe9" in shown[1] and "\\U0001f44d" in shown[1] and "é" not in shown[1]


def test_other_streams_are_left_alone(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.StringIO())
    terminal.show_everything()
