"""What a rolling evaluation came to: a table for the terminal, and a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from blossomrec.errors import MissingExtraError
from blossomrec.files import replacing
from blossomrec.rolling.measured import DECISIVE, Line, Rolled, Total

PICTURE = "rolling.svg"
# Colours and line styles of the strategies, told apart also without colours.
STYLES = {
    "stale": {"color": "#8a8f98", "linestyle": ":"},
    "update": {"color": "#1f6feb", "linestyle": "-"},
    "retrain": {"color": "#c2410c", "linestyle": "--"},
}
TESTED = {"all": "all events of a period", "first": "the first event of each user in a period"}


def rolled_table(rolled: Rolled) -> Group:
    """Totals of the strategies, and NDCG@10 and seconds period by period."""
    if not rolled.lines:
        return Group(Text("nothing is measured yet"))
    return Group(
        Text(_title(rolled), style="bold"),
        _totals(rolled),
        Text("By period", style="bold"),
        _periods(rolled),
        Text(_told(rolled)),
        *([Text(f"Not done: {'; '.join(rolled.missing)}")] if rolled.missing else []),
    )


def _title(rolled: Rolled) -> str:
    lines = rolled.of(rolled.strategies[0])
    targets = sum(line["targets"] for line in lines)
    periods = f"{len(lines)} periods from {lines[0]['start']} to {lines[-1]['stop']}"
    return f"{periods}, {targets:,} targets: {TESTED[lines[0]['tested']]}"


def _told(rolled: Rolled) -> str:
    lines = rolled.of(rolled.strategies[0])
    unknown, first = (
        sum(line[name] for line in lines) for name in ("unknown_to_all", "without_history")
    )
    return (
        f"Ranked among all items with an event before the period; {unknown:,} targets are of items "
        "without one, and misses of every strategy, as are items that a model does not know. "
        f"{first:,} events are the first of their users, and not predicted. Ties count against the "
        "target. New items have their first event at or after the start of the first period. "
        "Shares of retraining are from the second period on: in the first all have the same model."
    )


def _totals(rolled: Rolled) -> Table:
    table = _table("strategy", DECISIVE, "hr@10", f"new items, {DECISIVE}", f"old, {DECISIVE}")
    for name in ("missed as unknown", "seconds", "of retrain's ndcg", "of its time", "ndcg, 95%"):
        table.add_column(name, justify="right")
    for strategy, found in rolled.totals().items():
        shares = rolled.shares(strategy)
        missed = sum(line["missed_as_unknown"] for line in rolled.of(strategy))
        table.add_row(
            strategy,
            *(_value(found, "metrics", name) for name in (DECISIVE, "hr@10")),
            *(_value(found, f"{part}_item_metrics", DECISIVE) for part in ("new", "old")),
            f"{missed:,}",
            f"{found.seconds:,.1f}",
            *(("", "") if shares is None else (f"{share:.1%}" for share in shares)),
            _interval(rolled.intervals.get(strategy)),
        )
    return table


def _interval(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.1%}–{bounds[1]:.1%}"


def _periods(rolled: Rolled) -> Table:
    strategies = rolled.strategies
    values = [f"{one}, {DECISIVE}" for one in strategies]
    table = _table("period", "targets", "of new items", *values, *(f"{s}, s" for s in strategies))
    lines = {(line["period"], line["strategy"]): line for line in rolled.lines}
    for number in dict.fromkeys(line["period"] for line in rolled.lines):
        found = [lines.get((number, one)) for one in strategies]
        known = next(line for line in found if line is not None)
        accuracy = [None if line is None else line["metrics"].get(DECISIVE) for line in found]
        seconds = [None if line is None else line["seconds"] for line in found]
        table.add_row(
            known["start"],
            f"{known['targets']:,}",
            f"{known['new_item_targets']:,}",
            *(_number(value, ".4f") for value in accuracy),
            *(_number(value, ",.1f") for value in seconds),
        )
    return table


def _table(first: str, *others: str) -> Table:
    table = Table()
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _value(found: Total, part: str, name: str) -> str:
    return _number(found.values[part].get(name), ".4f")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def draw(rolled: Rolled, path: Path) -> None:
    """Draw NDCG@10 and seconds of training over the periods, as SVG or by the path's ending.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots") from error
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for strategy in rolled.strategies:
        lines = rolled.of(strategy)
        numbers = [line["period"] for line in lines]
        accuracy = [line["metrics"].get(DECISIVE, math.nan) for line in lines]
        above.plot(numbers, accuracy, label=strategy, **STYLES[strategy])
        below.plot(*_trained(lines), label=strategy, marker="o", markersize=3, **STYLES[strategy])
    above.set_ylabel("NDCG@10")
    below.set_ylabel("seconds of training")
    below.set_xlabel("period")
    below.xaxis.get_major_locator().set_params(integer=True)
    if any(line["seconds"] for line in rolled.lines):
        below.set_yscale("log")
    above.legend(frameon=False)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    options: dict[str, Any] = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
    # Text stays text, and the same numbers are the same file.
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "blossomrec"}
    with replacing(path) as temporary, rc_context(style):
        figure.savefig(temporary, format=path.suffix[1:] or "svg", **options)


def _trained(lines: list[Line]) -> tuple[list[int], list[float]]:
    """Periods before which something was trained, and seconds of it."""
    some = [line for line in lines if line["seconds"]]
    return [line["period"] for line in some], [line["seconds"] for line in some]


def draw_if_possible(rolled: Rolled, folder: Path) -> Path | None:
    """Draw ``rolling.svg``, where matplotlib is installed; the path."""
    if not rolled.lines:
        return None
    try:
        draw(rolled, folder / PICTURE)
    except MissingExtraError:
        return None
    return folder / PICTURE
