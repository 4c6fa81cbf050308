"""What the verbs that measure and show do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from blossomrec.commands.parameters import ConfigFile
from blossomrec.commands.printing import show_part
from blossomrec.config import (
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
    option,
)
from blossomrec.errors import ConfigError, RunError
from blossomrec.models.baselines import BASELINES
from blossomrec.recommendation.options import (
    Several,
)
from blossomrec.rolling.options import RollingOptions, UpdateOptions
from blossomrec.terminal import console


@dataclass(frozen=True)
class EvaluateOptions:
    """How ``evaluate`` ranks and measures; what is None is as the run or the baseline has it."""

    ranking: Literal["full", "uni100"] | None = option(
        None,
        "full ranks among all items, uni100 among 100 sampled ones and is labelled so, or by how "
        "many there are",
    )
    filter_seen: Literal["auto", "yes", "no"] | None = option(
        None, "leave items of the history out of the ranking"
    )
    split: Literal["leave-one-out", "global-time"] | None = option(
        None, "how a baseline's events are held out; a run keeps the split it was trained with"
    )
    last_events: int | None = option(
        None, "of a baseline's leave-one-out: events of each user that are tested one by one"
    )
    kinds: str | None = option(
        None, "of a baseline's split: kinds of events that are targets, such as buy or buy,cart"
    )
    ks: tuple[int, ...] | None = option(None, "cut-offs of the metrics")
    own_metrics: Several[str] | None = option(
        None,
        "metrics to measure as well: novelty, serendipity, diversity:COLUMN, long-tail, "
        "calibration:COLUMN of the table of items, gini, or those of installed packages",
    )
    segments: Several[str] | None = option(
        None, "columns of the table of users: also show the metrics of the users who share a value"
    )


def evaluate(
    model: Annotated[str, Parameter(help=f"a run folder, or {', '.join(BASELINES)}")],
    *,
    log: Path | None = None,
    on: Literal["test", "valid"] = "test",
    options: Annotated[EvaluateOptions, Parameter(name="*")] = EvaluateOptions(),
    out: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Measure a run, or a simple baseline, on the held-out events of a log.

    Under torchrun ranks share the catalogue of a run.

    Args:
        log: prepared log; a run knows the one it was trained on
        on: which held-out events
        out: folder whose subfolder evaluations gets it; a run's own folder without it
        device: where to compute
    """
    from blossomrec.data.fields import listed
    from blossomrec.data.log import EventLog
    from blossomrec.device import resolve_device
    from blossomrec.evaluation.evaluation import evaluation_path, save_evaluation
    from blossomrec.measure import evaluate_baseline, evaluate_run
    from blossomrec.ranks import launched, open_ranks
    from blossomrec.report.tables import evaluation_table
    from blossomrec.run.writing import write_metrics
    from blossomrec.tracking.trackers import tell_trackers
    from blossomrec.training.ranks.launch import reported

    given = vars(options) | {
        name: [one for text in getattr(options, name) or () for one in listed(text)]
        for name in ("own_metrics", "segments")
    }
    if (
        out is not None
        and (out / "config.json").is_file()
        and out.resolve() != Path(model).resolve()
    ):
        raise ConfigError(
            f"out is {out}: evaluations of another model are kept in that run's folder"
        )
    if model in BASELINES:
        if log is None:
            raise ConfigError(f"--log is needed to evaluate {model}")
        if launched():
            raise ConfigError(f"{model} is measured by one process: leave torchrun away")
        measured = evaluate_baseline(model, EventLog.open(log), on=on, **given)
    else:
        try:
            with reported(), open_ranks(resolve_device(device)) as ranks:
                measured = evaluate_run(model, log, on=on, device=device, ranks=ranks, **given)
        except RunError as error:
            if Path(model).exists():
                raise
            raise RunError(f"{error}, nor a baseline: {', '.join(BASELINES)}") from error
        if not ranks.first:
            return
    # Shown first: where nothing can be written, the work is not lost.
    show_part(evaluation_table(model, measured))
    try:
        if model not in BASELINES:
            name = f"{on}-{measured.protocol.ranking}"
            write_metrics(model, name, measured.metrics)
            numbers = {f"{name}/{metric}": one for metric, one in measured.metrics.items()}
            tell_trackers(Path(model), numbers)
            out = out or Path(model)
        if out is not None:
            save_evaluation(measured, evaluation_path(out, on, measured.protocol.ranking))
    except OSError as error:
        raise RunError(
            f"the evaluation above is not kept, as it cannot be written: {error}"
        ) from error


def rolling(
    log: Path,
    folder: Path,
    *,
    options: Annotated[RollingOptions, Parameter(name="*")] = RollingOptions(),  # noqa: B008
    update: UpdateOptions = UpdateOptions(),  # noqa: B008
    config: ConfigFile = None,
    model: ModelConfig = ModelConfig(),  # noqa: B008
    training: TrainingConfig = TrainingConfig(),  # noqa: B008
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    verbose: bool = False,
    quiet: bool = False,
) -> None:
    """Train and test a model period after period: left as it is, updated, trained anew.

    Args:
        log: folder that ``prepare`` wrote, of events with times
        folder: of the evaluation; where one was stopped, it goes on
        verbose: show each training
        quiet: show nothing but the outcome and errors
    """
    from blossomrec.rolling.jobs import rolling as roll
    from blossomrec.rolling.outcome import draw_if_possible, rolled_table

    base = RunConfig(model, training, evaluation)
    rolled = roll(
        log, folder, base, update=update, progress=not quiet, verbose=verbose, **vars(options)
    )
    show_part(rolled_table(rolled))
    draw_if_possible(rolled, folder)


def compare(
    first: Path,
    second: Path,
    *,
    on: Literal["test", "valid"] = "test",
    ranking: Literal["full", "uni100"] = "full",
) -> None:
    """Compare two evaluations of the same cases with a paired test.

    Args:
        first: a run folder, an evaluation's folder, or its .json file
        second: what it is compared with
        on: which held-out events
        ranking: which of the evaluations, where they are looked for in a folder
    """
    from blossomrec.evaluation import compare as paired
    from blossomrec.evaluation import compare_kinds, compare_segments
    from blossomrec.evaluation.evaluation import find_evaluation, load_evaluation
    from blossomrec.report import wording
    from blossomrec.report.tables import comparison_table

    paths = [find_evaluation(path, on, ranking) for path in (first, second)]
    measured = [load_evaluation(path) for path in paths]
    tests, by_kind, protocol = paired(*measured), compare_kinds(*measured), measured[0].protocol
    # Of segments no more is tested than is shown: there may be thousands.
    shown = wording.shown_metrics(protocol, tests)[:2]
    by_segment = compare_segments(*measured, names=shown, most=wording.MOST_SEGMENTS)
    show_part(comparison_table(str(first), str(second), tests, protocol, by_kind, by_segment))


def inspect(
    run: Path,
    *,
    log: Path | None = None,
    users: int = 500,
    max_len: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Show what the selector of a run selects, as tables and as an HTML page.

    Args:
        run: folder of a run with Blossom attention
        log: prepared log; a run knows the one it was trained on
        users: how many of the histories that are long enough for a choice, a fixed sample
        max_len: events of each history, the last ones; as many as in training without it
        seed: of the sample
        out: the page, inspect.html in the run's folder without it; a .json goes beside it
        device: where to compute
    """
    from blossomrec.report.inspect.inspect_page import inspect_and_write

    options: dict[str, Any] = {"users": users, "max_len": max_len, "seed": seed, "device": device}
    inspect_and_write(run, log, out, console(), **options)


def report(
    runs: list[Path],
    *,
    out: Path = Path("report.html"),
    title: str = "Recommenders compared",
) -> None:
    """Write one self-contained HTML page about several evaluated runs.

    Args:
        runs: folders of runs and of baselines' evaluations; all are tested against the first
        out: the page
        title: its heading
    """
    from blossomrec.report.report import write_run_report
    from blossomrec.tracking.trackers import tell_trackers

    if out.is_dir():
        raise ConfigError(f"out is {out}: the name of a file is needed, and a folder is there")
    write_run_report(runs, out, title=title)
    for run in runs:
        tell_trackers(run, {}, [out])
    print(f"wrote {out}")
