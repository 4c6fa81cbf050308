"""Events a second over the number of GPUs: measured points filled, computed ones hollow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.speed.length_plots import (
    COLOURS,
    MARKERS,
    described,
    require_matplotlib,
    save,
)
from benchmarks.speed.speed_lines import Line


def as_many_each(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Lines by what is trained, by rising number of GPUs, each with as many events as one alone."""
    lines = list(lines)
    alone = {_case(line): line["tokens_per_rank"] for line in lines if line["gpus"] == 1}
    found: dict[str, list[Line]] = {}
    for line in sorted(lines, key=lambda line: line["gpus"]):
        case = _case(line)
        if line["tokens_per_rank"] == alone.get(case):
            found.setdefault(case, []).append(line)
    return found


def draw_scale(lines: Iterable[Line], path: Path) -> None:
    """One panel with logarithmic axes, a curve for each catalogue, length and loss.

    Args:
        lines: of ``python -m benchmarks scale``, and computed ones.
        path: the .svg file, replaced whole; its description tells what is drawn.
    """
    lines = list(lines)
    figure = require_matplotlib()(figsize=(8.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(as_many_each(lines).items()):
        _curve(axes, name, points, number)
    _finish(axes)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    save(figure, path, described(lines))


def _case(line: Line) -> str:
    return f"{line['items']:,} items, histories of {line['length']:,}: {line['loss']}"


def _curve(axes: Any, name: str, points: list[Line], number: int) -> None:
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    rates = [(line["gpus"], line["events_per_second"] / 1e6) for line in points]
    axes.plot(*zip(*rates, strict=True), color=colour, linewidth=1.3, label=name)
    for hollow in (False, True):
        some = [
            rate
            for line, rate in zip(points, rates, strict=True)
            if line.get("computed", False) == hollow
        ]
        fill = {"markerfacecolor": "white"} if hollow else {}
        style = {"linestyle": "", "marker": marker, "markersize": 6, "color": colour}
        axes.plot([x for x, _ in some], [y for _, y in some], **style, **fill)


def _finish(axes: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    counts = sorted({int(x) for line in axes.lines for x in line.get_xdata()})
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)
    axes.set_xlabel("GPUs (hollow: computed)")
    axes.set_ylabel("million events a second")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
