"""``report.html``: what was measured, in one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from blossomrec.errors import DataError
from blossomrec.evaluation.evaluation import Evaluation
from blossomrec.files import write_text
from blossomrec.report import sections, wording
from blossomrec.report.comparison import Comparison
from blossomrec.report.parts import key_of
from blossomrec.report.svg import render_page


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


# Headings by id, in the order of the page.
SECTIONS = {
    "results": "Results",
    "sampled": "Sampled ranking",
    "learning": "Learning curves",
    "lengths": "Metrics by history length",
    "gates": "Gates",
    "attended": "Attended blocks",
    "data": "Data",
    "protocol": "Protocol",
    "configuration": "Configuration",
}


def render_report(data: ReportData) -> str:
    """The page as a string; sections without anything to show are left out."""
    full = Comparison({model.name: model.evaluation for model in data.models}, data.baseline)
    protocol = data.models[0].evaluation.protocol
    content: dict[str, Any] = {
        "results": sections.results(full),
        "sampled": sections.sampled(data),
        "learning": sections.learning(data),
        "lengths": sections.lengths(data),
        "gates": sections.gates(data),
        "attended": sections.attended(data),
        "data": list(wording.summary_pairs(data.summary)),
        "protocol": list(wording.protocol_pairs(protocol)),
        "configuration": sections.configuration(data),
    }
    return render_page(
        "report.html",
        title=data.title,
        kicker=(
            f"{data.dataset} · {protocol.num_cases:,} test cases · {protocol.num_items:,} items"
        ),
        finding=full.finding(),
        sections={name: heading for name, heading in SECTIONS.items() if content[name]},
        paths=key_of(["long-term", "short-term"]),
        **content,
    )
