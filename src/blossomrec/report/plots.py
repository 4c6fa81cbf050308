"""The figures of a report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from blossomrec.evaluation.metrics import LengthSlice
from blossomrec.report.attention_profile import attended_share, distance_shares
from blossomrec.report.page import (
    INK,
    MUTED,
    RULE,
    SERIES,
    Drawing,
    draw_estimate,
    finish,
    line_style,
    new_axes,
    to_svg,
)

Curve = tuple[int, str, Sequence[float], Sequence[float]]  # number of the colour, name, x, y
Estimate = tuple[str, float, float, float]  # name, value, low, high


def forest(
    estimates: Sequence[Estimate],
    label: str,
    alt: str,
    *,
    zero: bool = False,
) -> Drawing:
    """One value and its interval for every model, one below the other; ``zero`` draws a line."""
    figure, axes = new_axes(0.9 + 0.32 * len(estimates))
    for row, (_, value, low, high) in enumerate(estimates):
        draw_estimate(axes, row, value, low, high, row)
    if zero:
        axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(estimates)), [name for name, *_ in estimates])
    axes.set_ylim(len(estimates) - 0.4, -0.6)
    # The reader's font may be wider than that which the room was measured with.
    axes.locator_params(axis="x", nbins=5)
    finish(axes, label, grid="x")
    return to_svg(figure, alt)


def curves(lines: Sequence[Curve], label: str, alt: str, *, mark_best: bool = False) -> Drawing:
    """Values by epoch; ``mark_best`` marks the largest value of each line."""
    figure, axes = new_axes(2.7)
    for number, _, epochs, values in lines:
        style = line_style(number)
        axes.plot(epochs, values, color=style["color"], linewidth=1.6)
        # A line of a single point would not be seen.
        if mark_best or len(values) == 1:
            place = int(np.argmax(values))
            axes.plot(epochs[place], values[place], linestyle="none", markersize=6, **style)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel(label, color=INK)
    finish(axes, "epoch", grid="y")
    return to_svg(figure, alt)


def by_length(
    models: Sequence[Sequence[LengthSlice]], metric: str, label: str, alt: str
) -> Drawing:
    """One metric with intervals, a row for each bin of history length, the models beside it."""
    bins = {part.low: part for slices in models for part in slices}
    order = {low: row for row, low in enumerate(sorted(bins))}
    figure, axes = new_axes(0.8 + len(order) * (0.24 + 0.13 * len(models)))
    spread = 0.62 / max(1, len(models))
    for number, slices in enumerate(models):
        shift = (number - (len(models) - 1) / 2) * spread
        for part in slices:
            low, high = part.intervals[metric]
            row = order[part.low] + shift
            draw_estimate(axes, row, part.metrics[metric], low, high, number)
    for row in range(1, len(order)):
        axes.axhline(row - 0.5, color=RULE, linewidth=0.6)
    names = [f"{bins[low].marked_label}\n{bins[low].users:,} users" for low in sorted(bins)]
    axes.set_yticks(range(len(order)), names)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.set_ylabel("events before the target", color=INK)
    finish(axes, label, grid="x")
    return to_svg(figure, alt)


def gates(values: np.ndarray, alt: str, label: str = "mean gate") -> Drawing:
    """Mean gate of the long-term and the short-term path for every layer and head.

    Args:
        values: [layers, heads, 2], (long, short) from 0 to 1.
        label: what they are.
    """
    layers, heads, _ = values.shape
    rows = [layer * (heads + 0.8) + head for layer in range(layers) for head in range(heads)]
    figure, axes = new_axes(0.8 + 0.2 * rows[-1] + 0.2)
    long, short = values.reshape(-1, 2).T
    axes.hlines(rows, np.minimum(long, short), np.maximum(long, short), color=RULE, linewidth=2)
    for number, path in enumerate((long, short)):
        axes.plot(path, rows, linestyle="none", markersize=5.5, **line_style(number))
    names = [
        f"layer {layer + 1}, head {head + 1}" for layer in range(layers) for head in range(heads)
    ]
    axes.set_yticks(rows, names)
    axes.set_ylim(rows[-1] + 0.8, -0.8)
    axes.set_xlim(-0.03, 1.03)
    finish(axes, label, grid="x")
    return to_svg(figure, alt)


def attended(selected: np.ndarray, block_size: int, alt: str) -> Drawing:
    """Heat map of the blocks selected from every position of one history."""
    share, tall, wide = attended_share(selected, block_size)
    length, height = len(selected), len(share) * tall * block_size
    figure, axes = new_axes(3.2)
    # One hue whose opacity is the share: it reads on a light and on a dark page.
    picture = np.zeros((*share.shape, 4))
    picture[..., :3] = np.array([0x35, 0x7E, 0xC7]) / 255
    strongest = np.quantile(share[share > 0], 0.98) if share.any() else 1.0
    picture[..., 3] = np.sqrt(np.minimum(1, share / strongest))
    extent = (0, share.shape[1] * wide, 0, height)
    axes.imshow(picture, origin="lower", extent=extent, aspect="auto", interpolation="none")
    starts = np.arange(0, length, block_size)
    axes.step([*starts, length], [*starts, starts[-1]], where="post", color=MUTED, linewidth=1)
    axes.set_xlim(0, length)
    axes.set_ylim(0, height)
    axes.set_ylabel("position of the selected block", color=INK)
    finish(axes, "position in the history from which it was selected", grid="")
    return to_svg(figure, alt)


def distances(selections: Sequence[np.ndarray], block_size: int, alt: str) -> Drawing:
    """How far back the selected blocks lie, beside a uniform choice among the eligible ones."""
    chosen, chance = distance_shares(selections, block_size)
    used = int(np.flatnonzero(chosen + chance).max(initial=1)) + 1
    width = -(-used // 30)
    edges = np.arange(1, used + width, width)
    chosen, chance = (
        np.add.reduceat(np.pad(v, (0, used + width)), edges) for v in (chosen, chance)
    )
    figure, axes = new_axes(2.7)
    middles = edges + (width - 1) / 2
    axes.bar(middles, chosen, width=width * 0.82, color=SERIES[0], linewidth=0)
    axes.step(middles, chance, where="mid", color=SERIES[1], linewidth=1.6)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("share of selections", color=INK)
    finish(axes, f"distance in blocks of {block_size} events", grid="y")
    return to_svg(figure, alt)
