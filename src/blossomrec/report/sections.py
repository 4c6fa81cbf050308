"""Sections of a report below its headline: learning, slices, gates, attended blocks, data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.evaluation.slices import FEW_NOTE
from blossomrec.report import page, plots, wording
from blossomrec.report.comparison import interval

if TYPE_CHECKING:
    from blossomrec.report.report import ModelReport, ReportData


def learning(data: ReportData) -> str:
    """Loss and validation by epoch, and what training cost; empty where nothing was trained."""
    losses, validated = [], []
    for number, model in enumerate(data.models):
        losses += _curve(number, model, lambda line: line.get("loss"))
        validated += _curve(
            number, model, lambda line: (line.get("validation") or {}).get("ndcg@10")
        )
    parts = []
    if losses:
        svg = plots.curves(losses, "training loss", "Training loss by epoch: " + _ends(losses))
        caption = "Only losses of the same kind can be compared."
        parts.append(page.figure("Training loss", svg, caption))
    if validated:
        alt = "Validation NDCG@10 by epoch: " + _ends(validated)
        svg = plots.curves(validated, "validation NDCG@10", alt, mark_best=True)
        caption = "The mark is the best epoch, whose weights are kept."
        parts.append(page.figure("Validation NDCG@10", svg, caption))
    if not parts:
        return ""
    trained = [(number, model.name) for number, model in enumerate(data.models) if model.log_lines]
    return page.key(trained) + page.figures(parts) + _cost(data)


def _curve(number: int, model: ModelReport, of: Any) -> list[plots.Curve]:
    points = [(line["epoch"], of(line)) for line in model.log_lines if of(line) is not None]
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    return [(number, model.name, epochs, values)] if points else []


def _ends(lines: Sequence[plots.Curve]) -> str:
    return "; ".join(
        f"{name} from {values[0]:.4f} to {values[-1]:.4f}, {len(values)} points"
        for _, name, _, values in lines
    )


def _cost(data: ReportData) -> str:
    rows = []
    for model in data.models:
        lines = [line for line in model.log_lines if "seconds" in line]
        if not lines:
            continue
        speed = [line["events_per_second"] for line in lines if line.get("events_per_second")]
        peak = max(line.get("peak_mib") or 0 for line in lines)
        rows.append(
            [
                escape(model.name),
                f"{len(lines)}",
                f"{np.median([line['seconds'] for line in lines]):.2f}",
                f"{np.median(speed):,.0f}" if speed else "–",
                f"{peak:,.0f}" if peak else "–",
            ]
        )
    head = ["Model", "Epochs", "Seconds per epoch", "Events per second", "Peak memory, MiB"]
    return page.table(head, rows, "Cost of training") if rows else ""


def lengths(data: ReportData) -> str:
    """Metrics by length of history."""
    k = data.models[0].evaluation.protocol.headline_k
    slices = [model.evaluation.slices for model in data.models]
    parts = []
    for metric in (f"ndcg@{k}", f"hr@{k}"):
        label = wording.metric_label(metric)
        alt = f"{label} with 95% intervals by length of history; the numbers are in the table"
        svg = plots.by_length(slices, metric, label, alt)
        parts.append(page.figure(label, svg, "Bars are 95% intervals over users."))
    metric, rows = f"ndcg@{k}", []
    for own in zip(*slices, strict=True):
        cells = (f"{part.metrics[metric]:.4f}{interval(*part.intervals[metric])}" for part in own)
        rows.append([own[0].marked_label, f"{own[0].users:,}", *cells])
    caption = f"{wording.metric_label(metric)} by length of history"
    numbers = page.table(["Events before the target", "Users", *data.names], rows, caption)
    names = list(enumerate(data.names))
    note = page.paragraph(FEW_NOTE) if any(part.few for part in slices[0]) else ""
    return page.key(names) + page.figures(parts) + note + page.details("Numbers", numbers)


def gates(data: ReportData) -> str:
    """Long-term beside short-term gates by layer and head; empty for models without."""
    parts = []
    for model in data.models:
        if model.gates is None:
            continue
        values = np.asarray(model.gates, dtype=float)
        means = values.reshape(-1, 2).mean(0)
        words = f"mean over layers and heads: long-term {means[0]:.2f}, short-term {means[1]:.2f}"
        svg = plots.gates(values, f"Gates of {model.name} by layer and head; {words}")
        parts.append(page.figure(model.name, svg, words.capitalize() + "."))
    if not parts:
        return ""
    text = (
        "Every head adds up two attentions, each weighted by a gate between 0 and 1: the long-term "
        "one, over blocks chosen from the whole history, and the short-term one, over "
        "recent events."
    )
    paths = [(0, "long-term"), (1, "short-term")]
    return page.paragraph(text) + page.key(paths) + page.figures(parts)


def attended(data: ReportData) -> str:
    """Maps of the selected blocks of some histories, and how far back they lie."""
    return "".join(_attended_by(model) for model in data.models if len(model.selections))


def _attended_by(model: ModelReport) -> str:
    text = (
        f"{model.name}: blocks of {model.block_size} events that the long-term attention selected. "
        "The stronger the colour, the larger a block's share of the selections; the line is the "
        "event's own block, which is always attended."
    )
    selections = [selected for _, selected in model.selections]
    alt = f"Distance of the blocks selected by {model.name}, beside a uniform choice"
    svg = plots.distances(selections, model.block_size, alt)
    caption = (
        "Bars: selected blocks of these histories, where there was a choice. "
        "Line: a uniform choice among the eligible blocks."
    )
    parts = [*_maps(model), page.figure("How far back", svg, caption)]
    return page.paragraph(text) + page.figures(parts)


def _maps(model: ModelReport) -> Iterator[str]:
    for title, selected in model.selections:
        alt = f"Selected blocks of {title}, a history of {len(selected):,} events"
        svg = plots.attended(selected, model.block_size, alt)
        yield page.figure(title, svg, f"{len(selected):,} events.")


def summary(data: ReportData) -> str:
    """What the log holds."""
    return page.definitions(wording.summary_pairs(data.summary)) if data.summary else ""


def configuration(data: ReportData) -> str:
    """The resolved options, a group for each part."""
    groups, loose = [], []
    for name, value in data.config.items():
        if isinstance(value, Mapping):
            pairs = ((option, wording.value_text(entry)) for option, entry in value.items())
            groups.append(f"<div><h3>{escape(name)}</h3>{page.definitions(pairs)}</div>")
        else:
            loose.append((name, wording.value_text(value)))
    body = page.definitions(loose) if loose else ""
    return body + (f'<div class="groups">{"".join(groups)}</div>\n' if groups else "")
