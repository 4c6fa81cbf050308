"""A model measured as it is used, period after period: left as it is, updated, trained anew.

    python -m benchmarks rolling --logs LOGS --jobs 8

Each line of ``results/growth.jsonl`` is a strategy in a period of a data set; see docs/rolling.md.
Logs are prepared before, with ``blossomrec prepare``; from there on neither polars nor cyclopts is
needed:

    from benchmarks.accuracy.rolling_study import measure_rolling
    measure_rolling(Path("logs"), datasets=["ml-1m-timed"], jobs=8)
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.accuracy.accuracy_study import DATASETS, Preset, check_jobs, known_or_refused
from benchmarks.accuracy.reproduce import read
from benchmarks.job_queue import FOREVER, run_jobs
from blossomrec.config import RunConfig, to_dict
from blossomrec.errors import BlossomRecError, ConfigError
from blossomrec.files import locked
from blossomrec.rolling.options import RETRAIN, STRATEGIES, RollingOptions, UpdateOptions

if TYPE_CHECKING:
    import torch

    from blossomrec.rolling.jobs import RollingJob
    from blossomrec.rolling.measured import Rolled
    from blossomrec.rolling.study import Study

Line = dict[str, Any]
# What a chain of updates is known by; the first of a study has no number.
CHAIN = ("dataset", "model", "study", "chain")
BLOSSOM = "BlossomRec"
MODELS: dict[str, dict[str, Any]] = {
    BLOSSOM: {},
    "SASRec": {"attention": "full"},
    "GRU4Rec": {"backbone": "gru4rec"},
}


@dataclass(frozen=True)
class Dated:
    """What a data set is trained with, and where its last period ends; after all without it."""

    preset: Preset
    until: str = ""


ROLLED = {
    # Most of it is a few busy weeks: these are the last ones.
    "ml-1m-timed": Dated(DATASETS["ml-1m"], "2001-01-01"),
    # Its last day is cut off.
    "completejourney": Dated(
        Preset(200, 0.2, 8_192, epochs=24, validation_users=2_500), "2018-01-01"
    ),
    "amazon-beauty-timed": Dated(DATASETS["amazon-beauty"]),
    "ml-100k": Dated(DATASETS["ml-100k"]),
}


@dataclass(frozen=True)
class Setting:
    """What all data sets share."""

    model: str
    options: dict[str, Any]
    update: UpdateOptions
    max_len: int | None
    epochs: int | None
    seed: int

    def chains(self, dataset: str, logs: Path, runs: Path, count: int = 1) -> list[Chain]:
        """The chains of a data set; folders are named by all that decides their numbers."""
        from blossomrec.rolling.study import Study

        known_or_refused(dataset, ROLLED)
        known_or_refused(self.model, MODELS)
        rolled, found = ROLLED[dataset], list[Chain]()
        given: dict[str, Any] = {"until": rolled.until} | self.options
        for number in range(1, count + 1):
            config = rolled.preset.configure(
                MODELS[self.model],
                {"seed": self.seed + number - 1},
                max_len=self.max_len,
                epochs=self.epochs,
            )
            options = RollingOptions(**given)
            if number > 1:
                begun = [each for each in options.chosen if each != RETRAIN]
                options = replace(options, strategies=",".join(begun))
            folder = runs / f"{dataset}-{self.model}-{digest(config, options, self.update)}"
            study = Study(logs / dataset, folder, config, options, self.update)
            found.append(Chain(dataset, number, study, found[0].study if found else study))
        return found


@dataclass(frozen=True)
class Chain:
    """What begins with one first training; from the second on without trainings from nothing.

    Attributes:
        number: from 1.
        first: study of the first chain, which has the trainings from nothing for all.
    """

    dataset: str
    number: int
    study: Study
    first: Study

    def told(self, model: str, jobs: int) -> Line:
        """What all its lines say."""
        config, options, update = self.first.config, self.first.options, self.first.update
        told = {
            "dataset": self.dataset,
            "study": digest(config, options, update),
            "model": model,
            "seed": self.study.config.training.seed,
            "max_len": config.model.max_len,
            "most_epochs": config.training.epochs,
            "period_length": options.period,
            "periods": options.periods,
            "update": asdict(update),
            "jobs": jobs,
        }
        return told | ({"chain": self.number} if self.number > 1 else {})


def digest(config: RunConfig, options: RollingOptions, update: UpdateOptions) -> str:
    """A name for all that decides the numbers of a data set."""
    told = asdict(options)
    told.pop("strategies")
    text = json.dumps([to_dict(config), told, asdict(update)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class LineJob:
    """A job whose lines are appended as soon as they are there; see ``run_jobs``."""

    job: RollingJob
    out: Path
    told: Line
    needs: float = 0.0

    def __str__(self) -> str:
        chain = f"chain {self.told['chain']}, " if "chain" in self.told else ""
        return f"{self.told['dataset']}, {chain}{self.job}"

    def run(self, device: torch.device, seconds: float) -> list[Line]:
        """Appends its lines itself, those that are not there."""
        from benchmarks.results import append_result, provenance
        from blossomrec.rolling.jobs import say

        def tell(line: Line) -> None:
            say(line)
            full = self.told | line
            if not _there(read(self.out), full, (*CHAIN, "period", "strategy")):
                append_result(self.out, full | provenance(device))

        self.job.run(tell)
        return []


def _there(lines: Iterable[Line], line: Line, names: Iterable[str]) -> bool:
    """Whether there is a line that has the same under these names."""
    return any(all(each.get(name) == line.get(name) for name in names) for each in lines)


def measure_rolling(
    logs: Path,
    *,
    out: Path = Path("results/growth.jsonl"),
    runs: Path = Path("runs/rolling"),
    datasets: list[str] | None = None,
    strategies: list[str] | None = None,
    model: str = BLOSSOM,
    period: str = "1d",
    periods: int = 30,
    until: str | None = None,
    targets: str = "all",
    update: UpdateOptions = UpdateOptions(),  # noqa: B008 (frozen)
    max_len: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    chains: int = 1,
    jobs: int = 1,
    seconds: float = FOREVER,
) -> None:
    """A model over periods of time: left as it is, brought up to date, trained from nothing.

    Args:
        logs: folder with a prepared log for each data set, such as ml-1m-timed, completejourney
        out: JSONL file that gets a line for each data set, period and strategy; what it has is not
            appended again
        runs: where run folders go; what was stopped goes on
        datasets: names of data sets; ml-1m-timed and completejourney without it
        strategies: stale, update, retrain; all without it
        model: BlossomRec, SASRec or GRU4Rec; it sees what the log has
        period: length of a period, such as 1d
        periods: how many
        until: where the last one ends, in ISO 8601; a data set's own without it
        targets: all events of a period, or the first of each user
        update: in what updates differ from the first training
        max_len: longest history, in events, if other than a data set's own
        epochs: most epochs of a training from nothing, if other than a data set's own
        seed: of the trainings
        chains: how many first trainings, with seeds that follow each other, are left as they are
            and brought up to date; trainings from nothing are of the first seed
        jobs: how many train at the same time, on the GPUs in turn
        seconds: until all has to end; what is not done goes on in the next call

    Raises:
        ConfigError: a data set or an option is wrong; nothing is begun.
        DataError: a log is missing, or has no times.
        BlossomRecError: some did not finish, after all others have; the message names them.
    """
    from blossomrec.rolling.jobs import jobs_of
    from blossomrec.rolling.study import Opened

    check_jobs(jobs)
    if chains < 1:
        raise ConfigError(f"chains is {chains}: at least 1")
    options: dict[str, Any] = {"period": period, "periods": periods, "targets": targets}
    options["strategies"] = ",".join(strategies or STRATEGIES)
    if until is not None:
        options["until"] = until
    setting = Setting(model, options, update, max_len, epochs, seed)
    names = datasets or ["ml-1m-timed", "completejourney"]
    found = [setting.chains(name, logs, runs, chains) for name in names]
    for chain in itertools.chain(*found):
        chain.study.check()
    opened = {chain.dataset: Opened(chain.study) for chain, *_ in found}
    with ExitStack() as held:
        queue = []
        for chain in itertools.chain(*found):
            held.enter_context(locked(chain.study.folder))
            chain.study.begin(opened[chain.dataset].log)
            told = chain.told(model, jobs)
            queue += [LineJob(job, out, told) for job in jobs_of(chain.study)]
        # Those first that much follows from: the sort keeps the order of the others.
        queue.sort(key=lambda each: each.job.number is not None)
        missing = run_jobs(queue, out, together=jobs, seconds=seconds)
        for chain in itertools.chain(*found):
            print(f"{chain.dataset}, first training with seed {chain.study.config.training.seed}:")
            _append_intervals(_show(chain), chain.told(model, jobs), out)
    if missing:
        raise BlossomRecError(
            f"{len(missing)} of {len(queue)} did not finish: {'; '.join(missing)}"
        )


def _show(chain: Chain) -> Rolled:
    """What there is by now: shown as a table, drawn in the folder of the study."""
    from blossomrec.rolling.jobs import collected
    from blossomrec.rolling.outcome import draw_if_possible, rolled_table
    from blossomrec.terminal import console, show

    rolled = collected(chain.study, chain.first)
    show(console(), rolled_table(rolled))
    draw_if_possible(rolled, chain.study.folder)
    return rolled


def _append_intervals(rolled: Rolled, told: Line, out: Path) -> None:
    """Append how sure the shares of retraining's NDCG@10 are, where all periods are done."""
    from benchmarks.results import append_result

    for strategy, (low, high) in () if rolled.missing else rolled.intervals.items():
        share, _ = rolled.shares(strategy) or (0.0, 0.0)
        key = {name: told[name] for name in CHAIN if name in told} | {"compared": strategy}
        if not _there(read(out), key, (*CHAIN, "compared")):
            interval = {"ndcg_share": share, "low": low, "high": high}
            append_result(out, key | {name: round(each, 6) for name, each in interval.items()})
