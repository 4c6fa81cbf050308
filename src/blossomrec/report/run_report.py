"""The report of several runs: from run folders to the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from blossomrec.config import to_dict
from blossomrec.data.identity import differences
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.errors import RunError
from blossomrec.evaluation.storage import evaluation_path, find_evaluation, load_evaluation
from blossomrec.report.attention_profile import attention_profile
from blossomrec.report.report import ModelReport, ReportData, write_report
from blossomrec.run import load_model, read_run_config


def write_run_report(
    runs: Mapping[str, Path] | Sequence[Path], out: str | Path, *, title: str
) -> None:
    """Write a self-contained page about evaluated runs.

    Args:
        runs: run folders and folders of baselines' evaluations by display name, or a list of them,
            which are shown by the name of the folder. The first is what the others are tested
            against; all were measured on one log.
        out: the page.

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
    )
    write_report(out, data)


def model_report(name: str, run: Path, log: EventLog) -> ModelReport:
    """What a report shows of one run, or of a baseline, which has only its evaluation."""
    evaluation = load_evaluation(find_evaluation(run, "test", "full"))
    path = evaluation_path(run, ranking="uni100")
    sampled = load_evaluation(path) if path.is_file() else None
    if not (run / "config.json").is_file():
        return ModelReport(name, evaluation, sampled)
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
                title = f"history {number}, {blocks.shape[0]:,} events, layer {layer}"
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
    )
