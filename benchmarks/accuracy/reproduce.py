"""The verb ``reproduce``: a table of the paper, from what it costs to the lines it is made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from benchmarks.accuracy import accuracy_study as study
from benchmarks.accuracy.paper_tables import EFFICIENCY, PaperTable, chosen
from benchmarks.accuracy.paper_training import Line, Training, measure, measured
from benchmarks.job_queue import FOREVER
from blossomrec.errors import BlossomRecError, ConfigError

RESULTS = Path(__file__).resolve().parents[2] / "results"
# Lines that say how long a training of an epoch takes.
TIMED = ("accuracy", "lengths", "reproduce")


@dataclass(frozen=True)
class Plan:
    """The trainings of a table: all, those to do, and the lines there are.

    Attributes:
        timed: lines of trainings from which the time of others is estimated.
    """

    trainings: Sequence[Training]
    to_do: Sequence[Training]
    timed: Sequence[Line]

    def say(self, name: str, out: Path) -> str:
        """What will be done and what it costs, in words."""
        there = len(self.trainings) - len(self.to_do)
        words = [f"{name}: {len(self.trainings)} trainings, {there} are in {out}: "]
        words.append(f"{len(self.to_do)} to do")
        times = [(training, self.seconds(training)) for training in self.to_do]
        known = [seconds for _, seconds in times if seconds is not None]
        if known:
            minutes = sum(known) / 60
            time = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.0f} minutes"
            words.append(f"; {len(known)} of them take {time} one after the other")
            words.append(f" (epochs x seconds per epoch, on {', '.join(self.machines())})")
        unknown = {training.form.name: None for training, seconds in times if seconds is None}
        if unknown:
            count = len(times) - len(known)
            words.append(f"; the time of {count} is unknown: {', '.join(unknown)}")
        return "".join(words)

    def seconds(self, training: Training) -> float | None:
        """The mean of the same model's, or of its attention's, trainings; None without any."""
        if training.form.baseline:
            return 0.0
        alike = [line for line in self.timed if _is_like(line, training)]
        same = [line for line in alike if line.get("model") == training.form.name]
        limit = training.configure().training.epochs
        times = [min(limit, line["epochs"]) * line["seconds_per_epoch"] for line in same or alike]
        return mean(times) if times else None

    def machines(self) -> list[str]:
        """Where the trainings ran whose times are taken."""
        used = {
            line["hardware"].partition(";")[0]: None
            for line in self.timed
            if any(_is_like(line, training) for training in self.to_do)
        }
        return list(used)


def _is_like(line: Line, training: Training) -> bool:
    """Whether a line's model has the same data, length, direction and attention."""
    if (line["dataset"], line["max_len"]) != (training.dataset, training.max_len):
        return False
    fields = training.fields
    masked = fields["backbone"] == "bert4rec"
    alike = line["attention"] == fields["attention"]
    return alike and line["model"].startswith("BERT4Rec") == masked


def read(path: Path) -> list[Line]:
    """The lines of a results file, none where it is not there; half a line is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def planned(
    table: PaperTable,
    datasets: Iterable[str],
    seeds: Iterable[int],
    out: Path,
    epochs: int | None = None,
    models: Iterable[str] = (),
) -> Plan:
    """The plan of a table, or of some models of it by name.

    Raises:
        ConfigError: an option of a training is out of bounds, or a model is not in the table.
    """
    for name in models:
        study.known_or_refused(name, [form.name for form in table.forms])
    trainings = [
        Training(dataset, form, max_len, seed, epochs)
        for dataset, form, max_len in table.cells(datasets)
        if not models or form.name in models
        # A baseline is the same whatever the seed.
        for seed in ((0,) if form.baseline else seeds)
    ]
    for training in trainings:
        training.configure()
    lines = read(out)
    to_do = [training for training in trainings if not measured(lines, training)]
    others = [line for name in TIMED for line in read(RESULTS / f"{name}.jsonl")]
    timed = [line for line in (*others, *lines) if line.get("seconds_per_epoch")]
    return Plan(trainings, to_do, timed)


def reproduce(
    table: str,
    *,
    logs: Path | None = None,
    out: Path | None = None,
    runs: Path = Path("runs/reproduce"),
    seeds: list[int] | None = None,
    datasets: list[str] | None = None,
    models: list[str] | None = None,
    epochs: int | None = None,
    jobs: int = 1,
    seconds: float = FOREVER,
    dry_run: bool = False,
) -> bool:
    """Measure what a table of the paper needs, after saying what that costs.

    Args:
        table: accuracy, ablation, near-bias, precision, parameters, lengths or efficiency
        logs: folder with a prepared log for each data set, such as ml-1m or completejourney
        out: JSONL file that gets a line for each training and ranking, results/reproduce.jsonl
            without it, or for each attention and length, results/speed.jsonl without it; what it
            has is not done again
        runs: where the run folders go; training that was stopped goes on
        seeds: of the training, each a training of its own; 0, 1 and 2 without it
        datasets: some of the table's; all without it
        models: some of the table's, by their names in the lines; all without it
        epochs: most epochs, if other than a data set's own
        jobs: how many train at the same time, on the GPUs in turn
        seconds: until all has to end; what is not done goes on in the next call
        dry_run: only say what would be done

    Returns:
        Whether parity held, of efficiency.

    Raises:
        ConfigError: the table, a data set, a model or a number is wrong; nothing is begun.
        BlossomRecError: some did not finish, after all others have; the message names them.
    """
    study.check_jobs(jobs)
    if table == EFFICIENCY:
        from benchmarks.accuracy.efficiency import measure_efficiency

        given = {"logs": logs, "seeds": seeds, "datasets": datasets}
        given |= {"models": models, "epochs": epochs}
        given |= {"seconds": None if seconds == FOREVER else seconds}
        given |= {"jobs": None if jobs == 1 else jobs}
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"--{name} is for tables of trainings, not for {EFFICIENCY}")
        return measure_efficiency(out or Path("results/speed.jsonl"), dry_run=dry_run)
    out = out or Path("results/reproduce.jsonl")
    wanted, chosen_datasets = chosen(table, datasets)
    if logs is None:
        raise ConfigError(f"{table} needs --logs, the folder of prepared logs")
    of = list(dict.fromkeys(seeds or (0, 1, 2)))
    plan = planned(wanted, chosen_datasets, of, out, epochs, models or ())
    print(plan.say(table, out), flush=True)
    if dry_run:
        return True
    failure = None
    try:
        # Long ones first, so that none is left alone at the end.
        to_do = sorted(plan.to_do, key=lambda one: -one.max_len)
        study.in_processes(measure, to_do, logs, runs, out=out, jobs=jobs, seconds=seconds)
    except BlossomRecError as error:
        failure = error
    append_tests(plan, of, runs, out, wanted.comparisons)
    if failure is not None:
        raise failure
    return True


def append_tests(
    plan: Plan,
    seeds: Sequence[int],
    runs: Path,
    out: Path,
    comparisons: Iterable[tuple[str, str]] = (),
) -> None:
    """Append the paired test of each model that was measured now, or has none, to dense attention.

    Over users whose numbers are means over the seeds, where the evaluations of all are there.

    Args:
        comparisons: names of models that are tested against another as well, and of that one.
    """
    from benchmarks.accuracy.feature_study import paired_numbers
    from benchmarks.results import append_result
    from blossomrec.evaluation.evaluation import evaluation_path

    tested = [line for line in read(out) if "paired" in line]
    for first, second in pairs_to_test(plan.trainings, comparisons):
        both = [_of_seeds(each, seeds) for each in (first, second)]
        paths = [[evaluation_path(one.run(runs)) for one in each] for each in both]
        is_new = any(one in plan.to_do for each in both for one in each)
        is_there = all(path.exists() for each in paths for path in each)
        key = {
            "dataset": first.dataset,
            "max_len": first.max_len,
            "model": first.form.name,
            "against": second.form.name,
            "seeds": list(seeds),
            "changed": [one.form.changed for one in (first, second)],
        }
        known = any(key.items() <= line.items() for line in tested)
        if is_there and (is_new or not known):
            append_result(out, key | {"paired": paired_numbers(*paths)})


def pairs_to_test(
    trainings: Iterable[Training], comparisons: Iterable[tuple[str, str]]
) -> Iterator[tuple[Training, Training]]:
    """A training of each model beside one of each that it is tested against, of the same data."""
    firsts = {(one.dataset, one.max_len, one.form.name): one for one in trainings}
    # Baselines count whole histories, whatever the longest that models see.
    fitted = {key[::2]: one for key, one in firsts.items() if one.form.baseline}
    for (dataset, max_len, name), first in firsts.items():
        others = [first.form.against, *(other for one, other in comparisons if one == name)]
        for other in filter(None, others):
            second = firsts.get((dataset, max_len, other)) or fitted.get((dataset, other))
            if second is not None:
                yield first, second


def _of_seeds(training: Training, seeds: Iterable[int]) -> list[Training]:
    if training.form.baseline:
        return [training]
    return [replace(training, seed=seed) for seed in seeds]
