"""Time and memory over length, drawn from lines of results, as one SVG file that stands alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.bench_options import is_blossom
from benchmarks.speed.speed_lines import Line
from blossomrec.errors import MissingExtraError
from blossomrec.files import replacing

# As many as a picture has curves: attention alone has nine beside the floor.
COLOURS = (
    *("#2f6fb5", "#c4552d", "#3f8f4f", "#8a5aa8", "#a8842c", "#2b8c91", "#b04a7a", "#6b6b6b"),
    *("#8fb83a", "#5b3a24"),
)
MARKERS = "osD^vPX*<>"
# Labels of lengths closer to each other than this would overlap.
LEAST_RATIO = 3
# Values closer to each other than this are almost the same, and are to look so.
LEAST_RANGE = 8
# What is drawn of each bench: field, and what its axis says.
PANELS = {
    "attention": (("forward_backward_ms", "forward and backward, ms"), ("peak_mib", "peak, MiB")),
    "encoder": (("forward_backward_ms", "training step, ms"), ("peak_mib", "peak, MiB")),
    "training": (("epoch_seconds", "epoch, s"), ("peak_mib", "peak, MiB")),
    "incremental": (("forward_ms", "one more event, ms"), ("peak_mib", "kept or used, MiB")),
}


def require_matplotlib() -> Any:
    """The class that draws; MissingExtraError where the package is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots") from error
    return Figure


def draw(lines: Iterable[Line], bench: str, path: Path) -> None:
    """Two panels for each hidden size, all axes logarithmic; a curve for each row of a table.

    Args:
        lines: of results; those of other benches and of ragged batches are left out, and of lines
            that measured the same the last one counts.
        bench: whose lines.
        path: the .svg file, replaced whole; its description is the :func:`fingerprint` of what is
            drawn.
    """
    chosen = _chosen(lines, bench)
    sizes = sorted({_hidden_size(line) for line in chosen})
    figure = require_matplotlib()(figsize=(9.6, 4.2 * max(1, len(sizes))), layout="constrained")
    parts = figure.subfigures(max(1, len(sizes)), squeeze=False).flat
    for size, part in zip(sizes, parts, strict=False):
        part.suptitle(f"hidden size {size}", fontsize=10)
        _panels(part, curves(line for line in chosen if _hidden_size(line) == size), bench)
    save(figure, path, fingerprint(chosen, bench))


def fingerprint(lines: Iterable[Line], bench: str) -> str:
    """A hash of the lines that :func:`draw` would draw: a picture of others has another one."""
    return described(_chosen(lines, bench))


def described(lines: list[Line]) -> str:
    """A hash of lines, by which a picture tells what it shows."""
    text = json.dumps(lines, sort_keys=True)
    return f"lines {hashlib.sha256(text.encode()).hexdigest()}"


def _chosen(lines: Iterable[Line], bench: str) -> list[Line]:
    return [line for line in lines if line["bench"] == bench and line["length"]]


def curves(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Lines by name of the curve, each by rising length; Blossom first, the floor last."""
    lines = list(lines)
    # Where all but the computed floor are replays of graphs, no name needs to say so.
    some = len({bool(line.get("graph")) for line in lines if line["impl"] != "floor"}) > 1
    named: dict[str, dict[int, Line]] = {}
    for line in lines:
        name = _name(line) + (", graph" if some and line.get("graph") else "")
        named.setdefault(name, {})[line["length"]] = line

    def place(name: str) -> tuple[bool, bool]:
        impl = next(iter(named[name].values()))["impl"]
        return impl == "floor", not _is_ours(impl)

    return {
        name: [named[name][length] for length in sorted(named[name])]
        for name in sorted(named, key=place)
    }


def _panels(part: Any, series: dict[str, list[Line]], bench: str) -> None:
    for axes, (field, label) in zip(part.subplots(1, 2), PANELS[bench], strict=True):
        for number, (name, points) in enumerate(series.items()):
            _curve(axes, name, points, field, number)
        _finish(axes, label)
    handles, names = part.axes[0].get_legend_handles_labels()
    part.legend(handles, names, loc="outside right center", frameon=False, fontsize=8)


def _is_ours(impl: str) -> bool:
    """Whether it is Blossom attention, however it keeps its states."""
    return impl == "paged" or is_blossom(impl)


def _name(line: Line) -> str:
    impl = line["impl"]
    parts = [f"Blossom ({impl.replace('-', ', ')})" if _is_ours(impl) else impl]
    if line["compress"] != "none":
        parts.append(line["compress"])
    parts.append(f"{line['heads']}/{line['kv_heads']}/{line['head_dim']}")
    if line.get("users", 1) > 1:
        parts.append(f"{line['users']} users")
    if "lessons" in line and line["compress"] != "none":
        parts.append("distilled" if line["lessons"] else "not distilled")
    return ", ".join(parts)


def _hidden_size(line: Line) -> int:
    return line["heads"] * line["head_dim"]


def _curve(axes: Any, name: str, points: Sequence[Line], field: str, number: int) -> None:
    known = [(line["length"], line[field]) for line in points if line.get(field)]
    if not known:
        return
    floor, ours = points[0]["impl"] == "floor", _is_ours(points[0]["impl"])
    axes.plot(
        *zip(*known, strict=True),
        label=name,
        color="#444444" if floor else COLOURS[number % len(COLOURS)],
        marker="" if floor and len(known) > 1 else MARKERS[number % len(MARKERS)],
        markersize=4,
        linestyle=":" if floor else "-" if ours else "--",
        linewidth=2 if ours else 1.3,
    )


def _finish(axes: Any, label: str) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths = sorted({int(x) for line in axes.lines for x in line.get_xdata()}, reverse=True)
    shown: list[int] = []
    for length in lengths:
        if not shown or shown[-1] >= LEAST_RATIO * length:
            shown.append(length)
    axes.set_xticks(shown, [f"{length:,}" for length in shown], fontsize=8)
    axes.set_xticks([], minor=True)
    low, high = axes.get_ylim()
    if high < LEAST_RANGE * low:
        axes.set_ylim(low / 2, high * 2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=8)
    axes.set_xlabel("events of a history")
    axes.set_ylabel(label)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure: Any, path: Path, description: str) -> None:
    """Write a figure as an SVG file with a description, the same bytes for the same figure."""
    import matplotlib

    # Text stays text; without a salt the names inside would differ at every run.
    options: Any = {"svg.fonttype": "none", "svg.hashsalt": "blossomrec"}
    with matplotlib.rc_context(options), replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None, "Description": description})
