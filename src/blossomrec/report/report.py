"""``report.html``: what was measured, in one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from blossomrec.errors import DataError
from blossomrec.evaluation.evaluation import Evaluation
from blossomrec.files import write_text
from blossomrec.report import page, plots, sections, wording
from blossomrec.report.comparison import LEVEL, Comparison


@dataclass(frozen=True, eq=False)
class ModelReport:
    """One model in a report.

    Attributes:
        name: what it is called in every table and figure; each name once.
        evaluation: full ranking on the test cases, the same cases for all models.
        sampled: ranking among sampled candidates, shown apart and labelled.
        log_lines: the records of the run's ``log.jsonl``; empty for what is not trained.
        gates: mean gates [layers, heads, 2], (long-term, short-term); None without.
        selections: (title, selected block numbers [L, n] or [L, G, n], -1 for none) of some
            histories; empty without.
        block_size: events in a block.
    """

    name: str
    evaluation: Evaluation
    sampled: Evaluation | None = None
    log_lines: Sequence[Mapping[str, Any]] = ()
    gates: np.ndarray | None = None
    selections: Sequence[tuple[str, np.ndarray]] = ()
    block_size: int = 16


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that a report shows.

    Attributes:
        title: heading of the page.
        dataset: name of the data set.
        models: in the order of the tables.
        baseline: name of the model that the others are tested against.
        summary: of the log, ``EventLog.summary``.
        config: the resolved configuration, nested.

    Raises:
        DataError: a name stands twice, the baseline is none of the models, or full and sampled
            ranking are mixed up.
    """

    title: str
    dataset: str
    models: Sequence[ModelReport]
    baseline: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            raise DataError(f"names of models in a report must differ: {', '.join(self.names)}")
        if self.baseline not in self.names:
            raise DataError(f"baseline {self.baseline!r} is none of {', '.join(self.names)}")
        for model in self.models:
            sampled = model.sampled
            if model.evaluation.protocol.ranking != "full":
                raise DataError(f"{model.name}: a sampled ranking is given as the full one")
            if sampled is not None and sampled.protocol.ranking == "full":
                raise DataError(f"{model.name}: a full ranking is given as the sampled one")

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.models]


def write_report(path: str | Path, data: ReportData) -> None:
    """Write the page, whole or not at all.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DataError: the models were not measured on the same cases by the same protocol.
    """
    path = Path(path)
    text = render_report(data)
    write_text(path, text)


def render_report(data: ReportData) -> str:
    """The page as a string; sections without anything to show are left out."""
    full = Comparison({model.name: model.evaluation for model in data.models}, data.baseline)
    protocol = data.models[0].evaluation.protocol
    parts = [
        ("results", "Results", _results(full)),
        ("sampled", "Sampled ranking", _sampled(data)),
        ("learning", "Learning curves", sections.learning(data)),
        ("lengths", "Metrics by history length", sections.lengths(data)),
        ("gates", "Gates", sections.gates(data)),
        ("attended", "Attended blocks", sections.attended(data)),
        ("data", "Data", sections.summary(data)),
        ("protocol", "Protocol", page.definitions(wording.protocol_pairs(protocol))),
        ("configuration", "Configuration", sections.configuration(data)),
    ]
    kicker = f"{data.dataset} · {protocol.num_cases:,} test cases · {protocol.num_items:,} items"
    return page.page(data.title, kicker, full.finding(), [part for part in parts if part[2]])


def _results(full: Comparison) -> str:
    estimates, differences = full.estimates(), full.differences()
    marks = "95% intervals stand below the values; the best value of a column is bold."
    if differences:
        marks += (
            f" ▲ and ▼: significantly better and worse than {full.baseline}, "
            f"p below {LEVEL} after correction for all comparisons of the table."
        )
    first = next(iter(full.evaluations.values()))
    everything = wording.shown_metrics(first.protocol, first.metrics)
    extra = [f"coverage@{full.k}", f"popularity@{full.k}"]
    figures = [
        page.figure(
            full.label,
            plots.forest(estimates, full.label, f"{full.label}: {_spoken(estimates)}"),
            "With 95% intervals over users.",
        )
    ]
    if differences:
        heading = f"Difference from {full.baseline}"
        svg = plots.forest(
            differences,
            f"difference in {full.label}",
            f"{heading} in {full.label}: {_spoken(differences)}",
            zero=True,
        )
        caption = "Paired by user, with 95% intervals: narrower than two intervals side by side."
        figures.append(page.figure(heading, svg, caption))
    return "".join(
        [
            full.table([*full.headline, *extra], "Full ranking, among the whole catalogue"),
            f'<p class="note">{escape(marks)}</p>\n',
            page.figures(figures),
            full.test_table() if differences else "",
            page.details("All metrics", full.table(everything, "All metrics of the full ranking")),
        ]
    )


def _spoken(estimates: Sequence[plots.Estimate]) -> str:
    return "; ".join(
        f"{name} {value:.4f}, interval {low:.4f} to {high:.4f}"
        for name, value, low, high in estimates
    )


def _sampled(data: ReportData) -> str:
    evaluations = {model.name: model.sampled for model in data.models if model.sampled}
    if not evaluations:
        return ""
    sampled = Comparison(evaluations, data.baseline)
    protocol = next(iter(evaluations.values())).protocol
    warning = (
        f"Sampled candidates: {protocol.candidates}. These numbers are far higher than those of a "
        "full ranking, may order models differently, and compare only with others measured alike."
    )
    table = sampled.table(sampled.headline, f"Sampled ranking ({protocol.label})")
    return f'<div class="sampled">{page.paragraph(warning)}{table}</div>\n'
