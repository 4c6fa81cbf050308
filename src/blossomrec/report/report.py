"""``report.html``: what was measured, in one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from blossomrec.config import to_dict
from blossomrec.data.identity import differences
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.errors import DataError, RunError
from blossomrec.evaluation.evaluation import (
    Evaluation,
    evaluation_path,
    find_evaluation,
    load_evaluation,
)
from blossomrec.files import write_text
from blossomrec.models.transformer import blossom_spec
from blossomrec.report import sections, wording
from blossomrec.report.attention_profile import attention_profile
from blossomrec.report.comparison import Comparison
from blossomrec.report.page import TextTable, key_of, render_page
from blossomrec.run.description import read_run_config
from blossomrec.run.weights import load_model


@dataclass(frozen=True, eq=False)
class ModelReport:
    """One model in a report.

    Attributes:
        name: what it is called in every table and figure; each name once.
        evaluation: full ranking on the test cases, the same cases for all models.
        sampled: ranking among sampled candidates, shown apart and labelled.
        log_lines: the records of the run's ``log.jsonl``; empty for what is not trained.
        gates: mean gates [layers, heads, 2], (long-term, short-term), of a union the shares of the
            attention on the keys of either; None without.
        selections: (title, selected block numbers [L, n] or [L, G, n], -1 for none) of some
            histories; empty without.
        block_size: events in a block.
        items: what it recommends most often; None where the log is not there.
        is_union: whether one softmax is over the keys of both paths.
    """

    name: str
    evaluation: Evaluation
    sampled: Evaluation | None = None
    log_lines: Sequence[Mapping[str, Any]] = ()
    gates: np.ndarray | None = None
    selections: Sequence[tuple[str, np.ndarray]] = ()
    block_size: int = 16
    items: TextTable | None = None
    is_union: bool = False


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
        later: what an update has changed; None without one.

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
    later: sections.Later | None = None

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
    "kinds": "Metrics by kind of event",
    "segments": "Metrics by segment of users",
    "items": "Items recommended most",
    "later": "After an update",
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
        "kinds": sections.kinds(data, full),
        "segments": sections.segments(data),
        "items": [one.items for one in data.models if one.items is not None],
        "later": data.later,
        "gates": sections.gates(data),
        "attended": sections.attended(data),
        "data": list(wording.summary_pairs(data.summary)),
        "protocol": list(wording.protocol_pairs(protocol, sections.own_metrics(data))),
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


def write_run_report(
    runs: Mapping[str, Path] | Sequence[Path],
    out: str | Path,
    *,
    title: str,
    later: sections.Later | None = None,
) -> None:
    """Write a self-contained page about evaluated runs.

    Args:
        runs: run folders and folders of baselines' evaluations by display name, or a list of them,
            which are shown by the name of the folder. The first is what the others are tested
            against; all were measured on one log.
        out: the page.
        later: what an update has changed; None without one.

    Raises:
        RunError: a folder holds no full ranking of the test cases, none is a run, or they belong
            to different vocabularies, or to other data than their log holds now.
        DataError: the evaluations are of different cases, or two have the same name.
    """
    if isinstance(runs, (str, Path)):
        raise RunError(f"runs is {str(runs)!r}: a list of folders is needed")
    pairs = runs.items() if isinstance(runs, Mapping) else [(Path(run).name, run) for run in runs]
    named = [(name, Path(run)) for name, run in pairs]
    trained = {name: run for name, run in named if (run / "config.json").is_file()}
    if not trained:
        raise RunError(f"none of {', '.join(str(run) for _, run in named)} is a trained run")
    log = EventLog.open(read_run_config(next(iter(trained.values()))).data)
    models = [model_report(name, run, log) for name, run in named]
    data = ReportData(
        title=title,
        dataset=log.folder.name,
        models=models,
        baseline=models[0].name,
        summary=log.summary,
        config={name: to_dict(read_run_config(run).config) for name, run in trained.items()},
        later=later,
    )
    write_report(out, data)


def model_report(name: str, run: Path, log: EventLog) -> ModelReport:
    """What a report shows of one run, or of a baseline, which has only its evaluation."""
    evaluation = load_evaluation(find_evaluation(run, "test", "full"))
    path = evaluation_path(run, ranking="uni100")
    sampled = load_evaluation(path) if path.is_file() else None
    fits = evaluation.protocol.num_items == log.num_items
    items = sections.most_recommended(evaluation, log, name) if fits else None
    if not (run / "config.json").is_file():
        return ModelReport(name, evaluation, sampled, items=items)
    info = read_run_config(run)
    if info.fingerprint != log.item_vocabulary.fingerprint:
        raise RunError(f"{run} belongs to another vocabulary than {log.folder}")
    differing = differences(info.log or {}, log.identity)
    if differing:
        raise RunError(f"{run} was trained on other data than {log.folder} has now ({differing})")
    config = info.config
    profile = attention_profile(load_model(run), log, make_split(log, config.evaluation).test)
    # What save_pretrained wrote has no log.
    history = run / "log.jsonl"
    lines = history.read_text().splitlines() if history.is_file() else []
    shown = []
    if profile is not None:
        for number, selected in enumerate(profile.selected, 1):
            for layer, blocks in enumerate(selected, 1):
                days = wording.period(profile.times(log, number - 1))
                events = f"{blocks.shape[0]:,} events" + (f" from {days}" if days else "")
                title = f"history {number}, {events}, layer {layer}"
                # Of a history within one block there is nothing to show.
                if (blocks >= 0).any():
                    shown.append((title, blocks))
    return ModelReport(
        name,
        evaluation,
        sampled,
        log_lines=[json.loads(line) for line in lines],
        gates=None if profile is None else profile.gates,
        selections=shown,
        block_size=config.model.block_size,
        items=items,
        is_union=blossom_spec(config.model, causal=True).is_union,
    )
