"""What a prepared log is summed up in: as numbers, and in words for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.data.log import FEATURE_TABLES
from blossomrec.data.units import ORDER, UNITS

if TYPE_CHECKING:
    from rich.table import Table

_PERCENTILES = (10, 25, 50, 75, 90, 99)
_LONG_HISTORIES = (500, 1_000, 2_000)
# Kinds that a summary shows, the most frequent ones.
_MOST_KINDS = 10
_UNITS_SHOWN = {ORDER: "an order, no points in time"}


def summarize(
    offsets: np.ndarray, first: int | float, last: int | float, unit: str
) -> dict[str, Any]:
    """Counts, percentiles of history length, share of long histories and time span.

    offsets: int64 [U+1]; first, last: times; unit: one of ``UNITS``, or "order". The result is
    ready for JSON.
    """
    lengths = np.diff(offsets)
    percentiles = np.percentile(lengths, _PERCENTILES)
    return {
        "users": len(lengths),
        "events": int(offsets[-1]),
        "mean_length": round(float(lengths.mean()), 2),
        "length_percentiles": {
            **{str(p): float(value) for p, value in zip(_PERCENTILES, percentiles, strict=True)},
            "max": int(lengths.max()),
        },
        "share_over": {str(n): float((lengths > n).mean()) for n in _LONG_HISTORIES},
        "time": _time_span(first, last, unit),
    }


def _time_span(first: int | float, last: int | float, unit: str) -> dict[str, Any]:
    """First and last time as numbers, their unit and, unless that is order, both in ISO 8601."""
    span: dict[str, Any] = {"first": first, "last": last, "unit": unit}
    if unit != ORDER:
        ends = (first / UNITS[unit], last / UNITS[unit])
        span["first_iso"], span["last_iso"] = map(_iso, ends)
    return span


def told_moment(time: float | None, unit: str) -> str:
    """A time of a log in ISO 8601, or as the number it is where times are an order."""
    return str(time) if time is None or unit == ORDER else _iso(time / UNITS[unit])


def _iso(seconds: float) -> str:
    return f"{np.datetime64(int(seconds // 1), 's')}Z"


def summary_table(summary: dict[str, Any], title: str = "Events") -> Table:
    """The summary of a prepared log as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    # Names of columns and kinds are text: square brackets in them are no markup.
    shown = Text(title, style="table.title")
    table = Table(title=shown, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    for row in _summary_rows(summary):
        table.add_row(*map(Text, row))
    return table


def _summary_rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if summary.get("lines") is not None:
        yield "lines in the file", f"{summary['lines']:,}"
    if "events_read" in summary:
        yield "events read", f"{summary['events_read']:,}"
    if summary.get("appended_events"):
        yield "events appended since", f"{summary['appended_events']:,}"
    for name in ("users", "items", "events"):
        yield name, f"{summary[name]:,}"
    yield "events per user, mean", f"{summary['mean_length']:,.1f}"
    for name, value in summary["length_percentiles"].items():
        label = "longest history" if name == "max" else f"history length, {name} %"
        yield label, f"{value:,.0f}"
    for name, share in summary["share_over"].items():
        yield f"users over {int(name):,} events", f"{share:.2%}"
    time = summary["time"]
    yield "first event", str(time.get("first_iso", time["first"]))
    yield "last event", str(time.get("last_iso", time["last"]))
    if summary.get("items_without_events"):
        yield "items without events", f"{summary['items_without_events']:,}"
    for what in ("items", "users"):
        for column in summary.get(FEATURE_TABLES[what]) or ():
            yield f"{what}: {column['name']}", _column_told(column)
    yield from _fields_rows(summary)
    if "unit" in time:
        yield "times are", _UNITS_SHOWN.get(time["unit"]) or time["unit"]
    yield "items repeat in histories", "yes" if summary["has_repeats"] else "no"
    yield from _ties_rows(summary)
    if summary.get("weights"):
        yield "weights", "yes"
    if not summary["dropped"]:
        yield "dropped", "nothing"
    for entry in summary["dropped"]:
        yield f"dropped: {entry['reason']}", f"{entry['events']:,} events"
    if any(entry["events"] for entry in summary["dropped"]):
        yield "users dropped with them", f"{summary['dropped_users']:,}"
        yield "items dropped with them", f"{summary['dropped_items']:,}"


def _fields_rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    kinds = summary.get("kinds") or {}
    for name, events in list(kinds.items())[:_MOST_KINDS]:
        yield f"kind: {name}", f"{events:,} events"
    if len(kinds) > _MOST_KINDS:
        yield "more kinds", f"{len(kinds) - _MOST_KINDS:,}"
    if summary.get("events_of_unknown_kind"):
        yield "kind is not known", f"{summary['events_of_unknown_kind']:,} events"
    for column in summary.get("context") or ():
        yield f"context: {column['name']}", _column_told(column)


def _column_told(column: dict[str, Any]) -> str:
    """Kind of a column, in parentheses how many categories, entries or what numbers, and where."""
    size = f" ({column['size']:,})" if column["kind"] in ("category", "vector") else ""
    if "mean" in column:
        size = f" (mean {column['mean']:.4g}, deviation {column['deviation']:.4g})"
    return f"{column['kind']}{size}, known of {column['known']:.1%}"


def _ties_rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    # Logs prepared by earlier versions know nothing of ties.
    ties = summary.get("ties")
    if ties is None:
        return
    yield "steps within equal times", f"{ties['share']:.2%}"
    if ties["steps"]:
        yield "of these to a higher item id", f"{ties['share_ascending']:.2%}"
        yield "order of equal times", "shuffled" if ties["shuffled"] else "as in the source"
