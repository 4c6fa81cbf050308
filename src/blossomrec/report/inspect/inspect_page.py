"""The page about an inspected run, its figures, and what ``blossomrec inspect`` writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.errors import ConfigError
from blossomrec.files import write_json, write_text
from blossomrec.report import page, plots, wording
from blossomrec.report.inspect import inspect_tables
from blossomrec.report.inspect.inspect_tables import gates_name, interval, named_heads, percent
from blossomrec.report.inspect.inspection import Inspection, inspect_run
from blossomrec.report.inspect.selection_measures import UniformChoice
from blossomrec.report.inspect.selection_totals import HeadChoices, LayerChoices
from blossomrec.report.page import Drawing, Figure, TextTable, key_of, render_page
from blossomrec.terminal import show

if TYPE_CHECKING:
    from rich.console import Console


def inspect_and_write(
    run: str | Path,
    log: str | Path | None,
    out: Path | None,
    console: Console,
    **options: Any,
) -> None:
    """Measure a run, print the tables, write the page and, beside it, the JSON.

    Args:
        run, log, options: as of :func:`blossomrec.report.inspect.inspection.inspect_run`.
        out: the page; None is ``inspect.html`` in the run's folder.

    Raises:
        ConfigError: the name of the page does not end in .html.
        MissingExtraError: matplotlib is not installed; tables and JSON are there all the same.
    """
    path = Path(run) / "inspect.html" if out is None else out
    if path.suffix != ".html":
        raise ConfigError(f"out is {path}: the name of a page ends in .html")
    inspection = inspect_run(run, log, **options)
    show(console, inspect_tables.inspection_tables(inspection))
    write_json(path.with_suffix(".json"), inspection.to_dict())
    write_text(path, render_inspection(inspection))
    console.print(
        f"wrote {path} and {path.with_suffix('.json').name}", markup=False, soft_wrap=True
    )


# Headings by id, in the order of the page.
SECTIONS = {
    "coverage": "Attention covered",
    "distances": "Distances",
    "hubs": "Hubs",
    "gates": "Gates",
    "examples": "Examples",
    "choice": "Where there is a choice",
    "model": "Model",
}


@dataclass(frozen=True)
class Measured:
    """A section with a table and figures."""

    table: TextTable
    figures: list[Figure]


def render_inspection(inspection: Inspection) -> str:
    """The page as a string.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    choice = inspection.choice
    heads = len(inspection.layers[0].heads)
    return render_page(
        "inspect.html",
        title=f"What {inspection.run} selects",
        kicker=(
            f"{inspection.dataset} · {choice.sampled_histories:,} test histories · "
            f"{choice.sampled_events:,} events with a choice"
        ),
        sections=SECTIONS,
        inspection=inspection,
        covered=_covered(inspection),
        heads=key_of([f"head {number}" for number in range(1, heads + 1)]),
        paths=key_of(["long-term", "short-term"]),
        coverage=_coverage(inspection),
        distances=_distances(inspection),
        hubs=_hubs(inspection),
        gates=_gates(inspection),
        examples=[inspect_tables.example(each) for each in inspection.examples],
        choice=list(inspect_tables.choice_pairs(inspection)),
        model=wording.value_pairs(asdict(inspection.model)),
    )


def _covered(inspection: Inspection) -> dict[str, str]:
    """Attention covered, of the best possible, and by a choice at random: layers together."""
    heads = [head for _, head in named_heads(inspection)]
    random = sum(head.random for head in heads) / sum(head.best for head in heads)
    return {
        "share": percent(inspection.ratio.value),
        "interval": interval(inspection.ratio),
        "random": percent(random),
    }


def _coverage(inspection: Inspection) -> Measured:
    layers = inspection.layers
    spoken = "; ".join(
        f"{name} {percent(head.ratio.value)}, {interval(head.ratio)}"
        for name, head in named_heads(inspection)
    )
    ratios = Figure(
        "Selected, of the best possible",
        draw_ratios(layers, f"Attention covered, of the best possible: {spoken}"),
        "With 95% intervals over histories. The short stroke is a random choice.",
    )
    spoken = "; ".join(
        f"{name} {percent(head.covered)} selected, {percent(head.own)} own block"
        for name, head in named_heads(inspection)
    )
    shares = Figure(
        "Where attention lies",
        draw_shares(layers, f"Shares of attention: {spoken}"),
        "Grey is the rest of the history.",
        key=key_of(["selected blocks", "own block"]),
    )
    return Measured(inspect_tables.coverage(inspection), [ratios, shares])


def _distances(inspection: Inspection) -> Measured:
    def draw(number: int, layer: LayerChoices) -> Drawing:
        alt = f"Distances to the blocks selected by layer {number}; quantiles are in the table"
        return draw_distances(layer, inspection.uniform, inspection.model.block_size, alt)

    return Measured(inspect_tables.distances(inspection), _by_layer(inspection, draw))


def _hubs(inspection: Inspection) -> Measured:
    def draw(number: int, layer: LayerChoices) -> Drawing:
        largest = ", ".join(percent(head.hub_shares[0]) for head in layer.heads)
        alt = f"Share of queries that select each block, layer {number}; largest: {largest}"
        return draw_hubs(layer, inspection.uniform, alt)

    return Measured(inspect_tables.hubs(inspection), _by_layer(inspection, draw))


def _by_layer(inspection: Inspection, draw: Callable[[int, LayerChoices], Drawing]) -> list[Figure]:
    caption = "Lines: heads. Grey: uniform choice."
    return [
        Figure(f"Layer {number}", draw(number, layer), caption)
        for number, layer in enumerate(inspection.layers, 1)
    ]


def _gates(inspection: Inspection) -> Measured:
    values, name = np.stack([layer.gates for layer in inspection.layers]), gates_name(inspection)
    alt = f"{name} by layer and query head; numbers are in the table"
    svg = plots.gates(values, alt, name.lower())
    figure = Figure(name, svg, "By query head, over the events with a choice.")
    return Measured(inspect_tables.gates(inspection), [figure])


def draw_ratios(layers: Sequence[LayerChoices], alt: str) -> Drawing:
    """Covered over best attention with its interval, for every head."""
    figure, axes, rows = _head_rows(layers)
    for row, place, head in rows:
        ratio = head.ratio
        page.draw_estimate(axes, row, ratio.value, ratio.low, ratio.high, place)
        axes.plot([head.random / head.best], [row], "|", color=page.MUTED, markersize=9)
    axes.xaxis.set_major_formatter(_percents())
    page.finish(axes, "share of what the best blocks would cover", grid="x")
    return page.to_svg(figure, alt)


def draw_shares(layers: Sequence[LayerChoices], alt: str) -> Drawing:
    """Where the attention of every head lies: selected, own block, elsewhere."""
    figure, axes, rows = _head_rows(layers)
    for row, _, head in rows:
        axes.barh(row, head.covered, 0.6, color=page.SERIES[0], linewidth=0)
        axes.barh(row, head.own, 0.6, left=head.covered, color=page.SERIES[1], linewidth=0)
        rest = 1 - head.covered - head.own
        axes.barh(row, rest, 0.6, left=1 - rest, color=page.RULE, linewidth=0)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(_percents(0))
    page.finish(axes, "share of the attention to the whole history", grid="")
    return page.to_svg(figure, alt)


def draw_distances(
    layer: LayerChoices, uniform: UniformChoice, block_size: int, alt: str
) -> Drawing:
    """Histogram of the distance to selected blocks; every bin reaches twice as far as the last."""
    figure, axes = page.new_axes(2.7)
    chance = octaves(uniform.distances)
    axes.stairs(chance, fill=True, color=page.RULE)
    middles = np.arange(len(chance)) + 0.5
    for place, head in enumerate(layer.heads):
        style = page.line_style(place)
        axes.plot(middles, octaves(head.distance_shares), linewidth=1.6, markersize=5, **style)
    # More names than these would run into each other on a phone.
    step = -(-(len(chance) + 1) // 8)
    edges = np.arange(0, len(chance) + 1, step)
    axes.set_xticks(edges, [f"{block_size << edge:,}" for edge in edges.tolist()])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(_percents(0))
    axes.set_ylabel("share of selections", color=page.INK)
    page.finish(axes, "distance to the selected block, events", grid="y")
    return page.to_svg(figure, alt)


def octaves(shares: np.ndarray) -> np.ndarray:
    """Shares of distances 0, 1, 2, ... added up over 1, 2-3, 4-7, ...; nothing lies at 0."""
    starts = 1 << np.arange((len(shares) - 1).bit_length())
    return np.add.reduceat(shares, starts)


def draw_hubs(layer: LayerChoices, uniform: UniformChoice, alt: str) -> Drawing:
    """Share of the queries that select a history's favourite block, the next one, and so on."""
    figure, axes = page.new_axes(2.7)
    places = np.arange(1, len(uniform.hub_shares) + 1)
    axes.bar(places, uniform.hub_shares, 0.8, color=page.RULE, linewidth=0)
    for place, head in enumerate(layer.heads):
        style = page.line_style(place)
        axes.plot(places, head.hub_shares, linewidth=1.6, markersize=4, **style)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(_percents(0))
    axes.set_ylabel("share of queries", color=page.INK)
    page.finish(axes, "blocks of a history, most often selected first", grid="y")
    return page.to_svg(figure, alt)


def _head_rows(
    layers: Sequence[LayerChoices],
) -> tuple[Any, Any, list[tuple[float, int, HeadChoices]]]:
    """Figure and axes with a row for each head: its place, its number in the layer, the head."""
    rows, names, at = [], [], 0.0
    for number, layer in enumerate(layers, 1):
        for place, head in enumerate(layer.heads):
            rows.append((at, place, head))
            names.append(f"layer {number}, head {place + 1}")
            at += 1
        at += 0.4
    figure, axes = page.new_axes(0.8 + 0.3 * at)
    axes.set_yticks([row for row, *_ in rows], names)
    axes.set_ylim(rows[-1][0] + 0.6, -0.6)
    return figure, axes, rows


def _percents(decimals: int | None = None) -> Any:
    """Without ``decimals`` as many as the range of the axis needs."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, decimals=decimals)
