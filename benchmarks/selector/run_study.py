"""The verb ``selector``: what the selector finds, on associative recall and on prepared logs.

    python -m benchmarks selector parity
    python -m benchmarks selector drift study --out results/selector.jsonl --together 8
    python -m benchmarks selector recall --candidates mlp full short
    python -m benchmarks selector logs --logs runs/logs
    python -m benchmarks selector cost

``recall`` trains each candidate of ``selector_candidates.py`` with each seed on the task of
``recall_task.py``. ``logs`` trains SASRec with the attention of each, alike in all else, with
histories of up to 1,024 events, compares them, and measures what the selected blocks cover of the
attention of users with a choice. ``study`` is all trainings that docs/selector.md is made of, those
on logs only where ``--logs`` names their folder; ``drift`` compares ways to train at the last
length; more than one may be named. Several trainings share a device (``--together``), devices are
taken in turn, and after ``--seconds`` all ends: trainings on recall are cut short in time to be
measured. ``cost`` times a training step and an encoding of each candidate in turn, and wants the
device for itself. ``parity`` compares steps that are replayed as CUDA graphs with steps taken
operation by operation, and fails where they differ.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from benchmarks.job_queue import run_jobs
from benchmarks.results import append_result
from benchmarks.selector.candidate_cost import cost_lines
from benchmarks.selector.graph_parity import parity
from benchmarks.selector.recall_options import RecallTraining
from benchmarks.selector.selector_candidates import CANDIDATES
from benchmarks.selector.selector_jobs import LogJob, RecallJob
from benchmarks.selector.selector_study import drift, study_logs, study_recall
from blossomrec.config import option
from blossomrec.errors import ConfigError, one_of

# What wants the device for itself.
ALONE = ("parity", "cost")


@dataclass(frozen=True)
class StudyOptions:
    """What is trained, and where it goes."""

    logs: Path | None = option(None, "folder of prepared logs")
    runs: Path = option(Path("runs/selector"), "where the run folders go")
    candidates: list[str] = option(("mlp",), f"of {', '.join(CANDIDATES)}")
    datasets: list[str] = option(("ml-1m", "assist2017"), "logs: names of the logs")
    seeds: list[int] = option((0, 1, 2), "recall and logs: each a training of its own")
    training: str = option("{}", "recall and logs: options of the training as JSON")
    model: list[str] = option(("{}",), "recall and logs: options as JSON, each a variant")
    eager: bool = option(False, "no CUDA graphs")

    def __post_init__(self) -> None:
        for name in self.candidates:
            one_of("candidates", name, CANDIDATES)


def jobs_of(what: str, given: StudyOptions) -> Sequence[RecallJob | LogJob]:
    """The trainings that are asked for; ConfigError where one cannot be had."""
    if what == "drift":
        return drift()
    if what == "study":
        on_logs = [] if given.logs is None else study_logs(given.logs, given.runs)
        return [*study_recall(), *on_logs]
    training = _options("training", given.training)
    variants = [(_options("model", text), seed) for seed in given.seeds for text in given.model]
    if what == "recall":
        return [
            RecallJob(name, model, RecallTraining(**training, seed=seed))
            for model, seed in variants
            for name in given.candidates
        ]
    if given.logs is None:
        raise ConfigError("logs needs --logs, the folder of prepared logs")
    return [
        LogJob(name, dataset, given.logs, given.runs, seed, model, training)
        for model, seed in variants
        for dataset in given.datasets
        for name in given.candidates
    ]


def _options(name: str, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--{name} is {text!r}, which is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--{name} is {text!r}: options by name are needed")
    return found


def run_study(
    what: list[Literal["drift", "study", "recall", "logs", "parity", "cost"]],
    *,
    out: Path = Path("results/selector.jsonl"),
    together: int = 1,
    seconds: float = 1e9,
    options: Annotated[StudyOptions, Parameter(name="*")] = StudyOptions(),
) -> bool:
    """What the selector finds; exit code 1 where parity is broken.

    Args:
        what: recall and logs train candidates; study and drift are the trainings behind
            docs/selector.md; cost and parity, each by itself, need no training
        out: JSONL file that gets a line for each measurement
        together: trainings at a time
        seconds: until all has to end
    """
    if set(what) & set(ALONE) and len(what) > 1:
        raise ConfigError(f"{' and '.join(ALONE)} want the device for themselves")
    if what == ["parity"]:
        return parity(list(options.candidates))
    if what == ["cost"]:
        for line in cost_lines(list(options.candidates)):
            append_result(out, line)
            print(line["candidate"], line["metrics"])
        return True
    jobs = [job for each in what for job in jobs_of(each, options)]
    if options.eager:
        jobs = [
            dataclasses.replace(job, graph=False) if isinstance(job, RecallJob) else job
            for job in jobs
        ]
    for job in run_jobs(jobs, out, together=together, seconds=seconds):
        print(f"not done: {job}")
    return True
