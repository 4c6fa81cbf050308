"""What a log holds, in a few numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.data.units import ORDER, UNITS

if TYPE_CHECKING:
    from rich.table import Table

_PERCENTILES = (10, 25, 50, 75, 90, 99)
_LONG_HISTORIES = (500, 1_000, 2_000)
_UNITS_SHOWN = {ORDER: "an order, no points in time"}


def summarize(offsets: np.ndarray, timestamps: np.ndarray, unit: str) -> dict[str, Any]:
    """Counts, percentiles of history length, share of long histories and time span.

    offsets: int64 [U+1]; timestamps: numbers [E]; unit: one of
    ``UNITS``, or "order". The result is ready for JSON.
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
        "time": _time_span(timestamps, unit),
    }


def _time_span(timestamps: np.ndarray, unit: str) -> dict[str, Any]:
    """First and last time as numbers, their unit and, unless that is order, both in ISO 8601."""
    first, last = timestamps.min().item(), timestamps.max().item()
    span: dict[str, Any] = {"first": first, "last": last, "unit": unit}
    if unit != ORDER:
        ends = (first / UNITS[unit], last / UNITS[unit])
        span["first_iso"], span["last_iso"] = map(_iso, ends)
    return span


def _iso(seconds: float) -> str:
    return f"{np.datetime64(int(seconds // 1), 's')}Z"


def summary_table(summary: dict[str, Any], title: str = "Events") -> Table:
    """The summary of a prepared log as a table for the terminal."""
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    if summary.get("lines") is not None:
        table.add_row("lines in the file", f"{summary['lines']:,}")
    if "events_read" in summary:
        table.add_row("events read", f"{summary['events_read']:,}")
    for name in ("users", "items", "events"):
        table.add_row(name, f"{summary[name]:,}")
    table.add_row("events per user, mean", f"{summary['mean_length']:,.1f}")
    for name, value in summary["length_percentiles"].items():
        label = "longest history" if name == "max" else f"history length, {name} %"
        table.add_row(label, f"{value:,.0f}")
    for name, share in summary["share_over"].items():
        table.add_row(f"users over {int(name):,} events", f"{share:.2%}")
    time = summary["time"]
    table.add_row("first event", str(time.get("first_iso", time["first"])))
    table.add_row("last event", str(time.get("last_iso", time["last"])))
    if summary.get("items_without_events"):
        table.add_row("items without events", f"{summary['items_without_events']:,}")
    for column in summary.get("item_table") or ():
        size = f" ({column['size']:,})" if column["kind"] in ("category", "vector") else ""
        label = f"items: {column['name']}"
        table.add_row(label, f"{column['kind']}{size}, known of {column['known']:.1%}")
    if "unit" in time:
        table.add_row("times are", _UNITS_SHOWN.get(time["unit"], time["unit"]))
    table.add_row("items repeat in histories", "yes" if summary["has_repeats"] else "no")
    for label, value in _ties_rows(summary):
        table.add_row(label, value)
    if summary.get("weights"):
        table.add_row("weights", "stored, not used yet")
    if not summary["dropped"]:
        table.add_row("dropped", "nothing")
    for entry in summary["dropped"]:
        table.add_row(f"dropped: {entry['reason']}", f"{entry['events']:,} events")
    if any(entry["events"] for entry in summary["dropped"]):
        table.add_row("users dropped with them", f"{summary['dropped_users']:,}")
        table.add_row("items dropped with them", f"{summary['dropped_items']:,}")
    return table


def _ties_rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    # Logs prepared by earlier versions know nothing of ties.
    ties = summary.get("ties")
    if ties is None:
        return
    yield "steps within equal times", f"{ties['share']:.2%}"
    if ties["steps"]:
        yield "of these to a higher item id", f"{ties['share_ascending']:.2%}"
        yield "order of equal times", "shuffled" if ties["shuffled"] else "as in the source"
