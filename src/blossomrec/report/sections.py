"""Sections of a report: results, learning, slices, items, gates, attended blocks, configuration.

Each function gives what ``templates/report.html`` draws, or nothing where there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.evaluation.metrics import FEW_NOTE, Slice
from blossomrec.report import plots, wording
from blossomrec.report.comparison import LEVEL, Comparison
from blossomrec.report.page import Cell, Figure, KeyEntry, TextTable, key_of

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog
    from blossomrec.evaluation.evaluation import Evaluation
    from blossomrec.report.report import ModelReport, ReportData

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Results:
    """The full ranking; ``tests`` against the baseline is None for a model alone."""

    headline: TextTable
    everything: TextTable
    figures: list[Figure]
    tests: TextTable | None
    baseline: str
    level: float


@dataclass(frozen=True)
class Sampled:
    """The sampled ranking, and among which candidates it is."""

    candidates: str
    table: TextTable


@dataclass(frozen=True)
class Learning:
    """Curves by epoch, and what training cost; the table may be without rows."""

    key: list[KeyEntry]
    figures: list[Figure]
    cost: TextTable


@dataclass(frozen=True)
class Lengths:
    """Metrics by length of history; ``note`` tells of bins with few users, empty without."""

    key: list[KeyEntry]
    figures: list[Figure]
    note: str
    numbers: TextTable


@dataclass(frozen=True)
class Kinds:
    """Metrics by kind of the target, and tests against the baseline; ``note`` as of ``Lengths``."""

    numbers: TextTable
    tests: TextTable | None
    note: str


@dataclass(frozen=True)
class Segments:
    """Metrics by the values of columns of the table of users; ``note`` as of ``Lengths``."""

    tables: list[TextTable]
    note: str


@dataclass(frozen=True)
class Later:
    """What an update has changed: in words, and in a table of what was recommended to one user."""

    note: str
    caption: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    @property
    def table(self) -> TextTable:
        return TextTable(self.caption, self.head, self.rows)


@dataclass(frozen=True)
class Attended:
    """Blocks that one model selected."""

    name: str
    block_size: int
    figures: list[Figure]


@dataclass(frozen=True)
class Configuration:
    """Options in groups, by name of the group, and those outside of any."""

    pairs: Pairs
    groups: list[tuple[str, Pairs]]


def results(full: Comparison) -> Results:
    """The full ranking in tables and figures."""
    protocol = next(iter(full.evaluations.values())).protocol
    metrics = [*full.headline, f"coverage@{full.k}", f"popularity@{full.k}"]
    names = dict.fromkeys(name for each in full.evaluations.values() for name in each.metrics)
    everything = wording.shown_metrics(protocol, names)
    return Results(
        headline=full.table(metrics, "Full ranking, among the whole catalogue"),
        everything=full.table(everything, "All metrics of the full ranking"),
        figures=list(_result_figures(full)),
        tests=full.test_table() if full.tests else None,
        baseline=full.baseline,
        level=LEVEL,
    )


def own_metrics(data: ReportData) -> list[str]:
    """Names of the metrics of lists and of the catalogue that any model was measured by."""
    found = [name for m in data.models for name in (*m.evaluation.lists, *m.evaluation.catalogue)]
    return list(dict.fromkeys(found))


def _result_figures(full: Comparison) -> Iterator[Figure]:
    estimates, differences = full.estimates(), full.differences()
    svg = plots.forest(estimates, full.label, f"{full.label}: {_spoken(estimates)}")
    yield Figure(full.label, svg, "With 95% intervals over users.")
    if differences:
        heading = f"Difference from {full.baseline}"
        alt = f"{heading} in {full.label}: {_spoken(differences)}"
        svg = plots.forest(differences, f"difference in {full.label}", alt, zero=True)
        caption = "Paired by user, with 95% intervals: narrower than two intervals side by side."
        yield Figure(heading, svg, caption)


def _spoken(estimates: Sequence[plots.Estimate]) -> str:
    return "; ".join(
        f"{name} {value:.4f}, interval {low:.4f} to {high:.4f}"
        for name, value, low, high in estimates
    )


def sampled(data: ReportData) -> Sampled | None:
    """The sampled ranking, apart from the full one."""
    evaluations = {model.name: model.sampled for model in data.models if model.sampled}
    if not evaluations:
        return None
    compared = Comparison(evaluations, data.baseline)
    protocol = next(iter(evaluations.values())).protocol
    table = compared.table(compared.headline, f"Sampled ranking ({protocol.label})")
    return Sampled(protocol.candidates, table)


def learning(data: ReportData) -> Learning | None:
    """Loss and validation by epoch, and what training cost."""
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
        parts.append(Figure("Training loss", svg, caption))
    if validated:
        alt = "Validation NDCG@10 by epoch: " + _ends(validated)
        svg = plots.curves(validated, "validation NDCG@10", alt, mark_best=True)
        caption = "The mark is the best epoch, whose weights are kept."
        parts.append(Figure("Validation NDCG@10", svg, caption))
    if not parts:
        return None
    trained = [
        KeyEntry(number, model.name) for number, model in enumerate(data.models) if model.log_lines
    ]
    return Learning(trained, parts, _cost(data))


def _curve(number: int, model: ModelReport, of: Any) -> list[plots.Curve]:
    points = [(line["epoch"], of(line)) for line in model.log_lines if of(line) is not None]
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    return [(number, model.name, epochs, values)] if points else []


def _ends(lines: Sequence[plots.Curve]) -> str:
    return "; ".join(
        f"{name} from {values[0]:.4f} to {values[-1]:.4f}, {len(values)} points"
        for _, name, _, values in lines
    )


def _cost(data: ReportData) -> TextTable:
    rows = []
    for model in data.models:
        lines = [line for line in model.log_lines if "seconds" in line]
        if not lines:
            continue
        speed = [line["events_per_second"] for line in lines if line.get("events_per_second")]
        peak = max(line.get("peak_mib") or 0 for line in lines)
        rows.append(
            [
                model.name,
                f"{len(lines)}",
                f"{np.median([line['seconds'] for line in lines]):.2f}",
                f"{np.median(speed):,.0f}" if speed else "–",
                f"{peak:,.0f}" if peak else "–",
            ]
        )
    head = ["Model", "Epochs", "Seconds per epoch", "Events per second", "Peak memory, MiB"]
    return TextTable("Cost of training", head, rows)


def lengths(data: ReportData) -> Lengths:
    """Metrics by length of history."""
    k = data.models[0].evaluation.protocol.headline_k
    slices = [model.evaluation.slices for model in data.models]
    parts = []
    for metric in (f"ndcg@{k}", f"hr@{k}"):
        label = wording.metric_label(metric)
        alt = f"{label} with 95% intervals by length of history; the numbers are in the table"
        svg = plots.by_length(slices, metric, label, alt)
        parts.append(Figure(label, svg, "Bars are 95% intervals over users."))
    metric, rows = f"ndcg@{k}", []
    for own in zip(*slices, strict=True):
        cells = (
            Cell(f"{part.metrics[metric]:.4f}", wording.interval(*part.intervals[metric]))
            for part in own
        )
        rows.append([own[0].marked_label, f"{own[0].users:,}", *cells])
    return Lengths(
        key=key_of(data.names),
        figures=parts,
        note=FEW_NOTE if any(part.few for part in slices[0]) else "",
        numbers=TextTable(
            f"{wording.metric_label(metric)} by length of history",
            ["Events before the target", "Users", *data.names],
            rows,
        ),
    )


def kinds(data: ReportData, full: Comparison) -> Kinds | None:
    """Metrics by kind of the target, where there are several kinds."""
    k = data.models[0].evaluation.protocol.headline_k
    by_model = [{part.kind: part for part in m.evaluation.kind_slices} for m in data.models]
    first = max(by_model, key=len)
    if len(first) < 2:
        return None
    rows = [
        [
            part.marked_label,
            f"{part.users:,}",
            f"{part.targets:,}",
            *_slice_cells([own.get(kind) for own in by_model], k),
        ]
        for kind, part in first.items()
    ]
    head = ["Kind", "Users", "Targets", *_slice_head(data.names, k)]
    return Kinds(
        TextTable("Metrics by kind of the target, among the whole catalogue", head, rows),
        full.kind_table(),
        FEW_NOTE if any(part.few for part in first.values()) else "",
    )


def segments(data: ReportData) -> Segments | None:
    """Metrics by the values of columns of the table of users, of the models that tell them."""
    by_model = [model.evaluation.segment_slices for model in data.models]
    columns = dict.fromkeys(column for slices in by_model for column in slices)
    if not columns:
        return None
    k = data.models[0].evaluation.protocol.headline_k
    tables, few = [], False
    for column in columns:
        own = [{part.value: part for part in slices.get(column, ())} for slices in by_model]
        first = max(own, key=len)
        shown = list(first.values())[: wording.MOST_SEGMENTS]
        few = few or any(part.few for part in shown)
        rows = [
            [
                part.marked_label,
                f"{part.users:,}",
                *_slice_cells([each.get(part.value) for each in own], k),
            ]
            for part in shown
        ]
        caption = wording.segments_title(column, len(first))
        tables.append(TextTable(caption, [column, "Users", *_slice_head(data.names, k)], rows))
    return Segments(tables, FEW_NOTE if few else "")


def _slice_head(names: Sequence[str], k: int) -> list[str]:
    """Heads of the cells of one slice: NDCG of all models, then HR."""
    alone = len(names) == 1
    return [
        f"{metric}@{k}" if alone else f"{name}, {metric}@{k}"
        for metric in ("NDCG", "HR")
        for name in names
    ]


def _slice_cells(parts: Sequence[Slice | None], k: int) -> list[str | Cell]:
    return [_slice_cell(part, metric) for metric in (f"ndcg@{k}", f"hr@{k}") for part in parts]


def _slice_cell(part: Slice | None, metric: str) -> str | Cell:
    if part is None:
        return "–"
    return Cell(f"{part.metrics[metric]:.4f}", wording.interval(*part.intervals[metric]))


def most_recommended(evaluation: Evaluation, log: EventLog, name: str) -> TextTable | None:
    """The ten items that stand most often among the first ones, with what the log says of them."""
    if evaluation.top is None:
        return None
    k = evaluation.protocol.headline_k
    counts = np.bincount(evaluation.top[:, :k].ravel() + 1, minlength=log.num_items + 1)[1:]
    rows = np.argsort(-counts, kind="stable")[:10]
    events = np.bincount(np.asarray(log.items), minlength=log.num_items)
    words = wording.ItemWords(log)
    cells = [
        [
            *(Cell(text, prose=bool(number)) for number, text in enumerate(words.cells(row))),
            f"{counts[row] / len(evaluation.top):.1%}",
            f"{events[row]:,}",
        ]
        for row in rows.tolist()
        if counts[row]
    ]
    named = [Cell(name, prose=bool(number)) for number, name in enumerate(words.head)]
    head = [*named, f"In the first {k}", "Events"]
    return TextTable(f"What {name} recommends most often", head, cells)


# What a union has instead of gates.
SHARES = "mean share of one softmax"


def gates(data: ReportData) -> list[Figure]:
    """Long-term beside short-term gates by layer and head, of the models that have them.

    Of a union the shares of the attention on the keys of either path.
    """
    parts = []
    for model in data.models:
        if model.gates is None:
            continue
        values = np.asarray(model.gates, dtype=float)
        means = values.reshape(-1, 2).mean(0)
        words = f"mean over layers and heads: long-term {means[0]:.2f}, short-term {means[1]:.2f}"
        kind, label = ("Shares", SHARES) if model.is_union else ("Gates", "mean gate")
        alt = f"{kind} of {model.name} by layer and head; {words}"
        shown = f"{label}, {words}" if model.is_union else words
        parts.append(Figure(model.name, plots.gates(values, alt, label), shown.capitalize() + "."))
    return parts


def attended(data: ReportData) -> list[Attended]:
    """Maps of the selected blocks of some histories, and how far back they lie."""
    return [_attended_by(model) for model in data.models if len(model.selections)]


def _attended_by(model: ModelReport) -> Attended:
    selections = [selected for _, selected in model.selections]
    alt = f"Distance of the blocks selected by {model.name}, beside a uniform choice"
    svg = plots.distances(selections, model.block_size, alt)
    caption = (
        "Bars: selected blocks of these histories, where there was a choice. "
        "Line: a uniform choice among the eligible blocks."
    )
    figures = [*_maps(model), Figure("How far back", svg, caption)]
    return Attended(model.name, model.block_size, figures)


def _maps(model: ModelReport) -> Iterator[Figure]:
    for title, selected in model.selections:
        alt = f"Selected blocks of {title}, a history of {len(selected):,} events"
        svg = plots.attended(selected, model.block_size, alt)
        yield Figure(title, svg, f"{len(selected):,} events.")


def configuration(data: ReportData) -> Configuration | None:
    """The resolved options, a group for each part."""
    if not data.config:
        return None
    made = Configuration([], [])
    for name, value in data.config.items():
        if isinstance(value, Mapping):
            made.groups.append((name, wording.value_pairs(value)))
        else:
            made.pairs.append((name, wording.value_text(value)))
    return made
