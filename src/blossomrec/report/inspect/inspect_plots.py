"""Figures of an inspected run, in the look of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from blossomrec.report import svg
from blossomrec.report.inspect.choice import UniformChoice
from blossomrec.report.inspect.selection_totals import HeadChoices, LayerChoices
from blossomrec.report.svg import Drawing


def ratios(layers: Sequence[LayerChoices], alt: str) -> Drawing:
    """Covered over best attention with its interval, for every head."""
    figure, axes, rows = _head_rows(layers)
    for row, place, head in rows:
        ratio = head.ratio
        svg.draw_estimate(axes, row, ratio.value, ratio.low, ratio.high, place)
        axes.plot([head.random / head.best], [row], "|", color=svg.MUTED, markersize=9)
    axes.xaxis.set_major_formatter(_percents())
    svg.finish(axes, "share of what the best blocks would cover", grid="x")
    return svg.to_svg(figure, alt)


def shares(layers: Sequence[LayerChoices], alt: str) -> Drawing:
    """Where the attention of every head lies: selected, own block, elsewhere."""
    figure, axes, rows = _head_rows(layers)
    for row, _, head in rows:
        axes.barh(row, head.covered, 0.6, color=svg.SERIES[0], linewidth=0)
        axes.barh(row, head.own, 0.6, left=head.covered, color=svg.SERIES[1], linewidth=0)
        rest = 1 - head.covered - head.own
        axes.barh(row, rest, 0.6, left=1 - rest, color=svg.RULE, linewidth=0)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(_percents(0))
    svg.finish(axes, "share of the attention to the whole history", grid="")
    return svg.to_svg(figure, alt)


def distances(layer: LayerChoices, uniform: UniformChoice, block_size: int, alt: str) -> Drawing:
    """Histogram of the distance to selected blocks; every bin reaches twice as far as the last."""
    figure, axes = svg.new_axes(2.7)
    chance = octaves(uniform.distances)
    axes.stairs(chance, fill=True, color=svg.RULE)
    middles = np.arange(len(chance)) + 0.5
    for place, head in enumerate(layer.heads):
        style = svg.line_style(place)
        axes.plot(middles, octaves(head.distance_shares), linewidth=1.6, markersize=5, **style)
    # More names than these would run into each other on a phone.
    step = -(-(len(chance) + 1) // 8)
    edges = np.arange(0, len(chance) + 1, step)
    axes.set_xticks(edges, [f"{block_size << edge:,}" for edge in edges.tolist()])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(_percents(0))
    axes.set_ylabel("share of selections", color=svg.INK)
    svg.finish(axes, "distance to the selected block, events", grid="y")
    return svg.to_svg(figure, alt)


def octaves(shares: np.ndarray) -> np.ndarray:
    """Shares of distances 0, 1, 2, ... added up over 1, 2-3, 4-7, ...; nothing lies at 0."""
    starts = 1 << np.arange((len(shares) - 1).bit_length())
    return np.add.reduceat(shares, starts)


def hubs(layer: LayerChoices, uniform: UniformChoice, alt: str) -> Drawing:
    """Share of the queries that select a history's favourite block, the next one, and so on."""
    figure, axes = svg.new_axes(2.7)
    places = np.arange(1, len(uniform.hub_shares) + 1)
    axes.bar(places, uniform.hub_shares, 0.8, color=svg.RULE, linewidth=0)
    for place, head in enumerate(layer.heads):
        style = svg.line_style(place)
        axes.plot(places, head.hub_shares, linewidth=1.6, markersize=4, **style)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.set_major_formatter(_percents(0))
    axes.set_ylabel("share of queries", color=svg.INK)
    svg.finish(axes, "blocks of a history, most often selected first", grid="y")
    return svg.to_svg(figure, alt)


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
    figure, axes = svg.new_axes(0.8 + 0.3 * at)
    axes.set_yticks([row for row, *_ in rows], names)
    axes.set_ylim(rows[-1][0] + 0.6, -0.6)
    return figure, axes, rows


def _percents(decimals: int | None = None) -> Any:
    """Without ``decimals`` as many as the range of the axis needs."""
    from matplotlib.ticker import PercentFormatter

    return PercentFormatter(1.0, decimals=decimals)
