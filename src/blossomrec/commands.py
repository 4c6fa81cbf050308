"""What each verb of the command line does. Heavy imports wait until a verb runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from blossomrec.config import (
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
    check,
    to_dict,
)
from blossomrec.errors import ConfigError, RunError

if TYPE_CHECKING:
    from blossomrec.evaluation import Evaluation

ConfigFile = Annotated[
    Path | None, Parameter(help="YAML, TOML or JSON file with model, training, evaluation options")
]


def prepare(
    source: Path,
    folder: Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str = "timestamp",
    weight: str | None = None,
    min_user_events: int = 1,
    min_item_events: int = 1,
    merge_repeats: bool = False,
    drop_duplicates: bool = False,
) -> None:
    """Read a table of events, check it, write the memory-mapped log.

    Args:
        source: .parquet, .csv, .tsv or RecBole's .inter file
        folder: where the prepared log goes; a prepared log that is there is replaced
        user: column of the user ids
        item: column of the item ids
        timestamp: column of the times, numbers or datetimes
        weight: column of the events' weights, if there is one
        min_user_events: drop users with fewer events, again and again together with the items
        min_item_events: drop items with fewer events
        merge_repeats: keep the first of neighbouring events with the same item
        drop_duplicates: keep the first of events with the same user, item and time
    """
    from blossomrec.data.log import EventLog
    from blossomrec.data.summary import summary_table

    log = EventLog.prepare(
        source,
        folder,
        user=user,
        item=item,
        timestamp=timestamp,
        weight=weight,
        min_user_events=min_user_events,
        min_item_events=min_item_events,
        merge_repeats=merge_repeats,
        drop_duplicates=drop_duplicates,
    )
    _console().print(summary_table(log.summary))


def train(
    log: Path,
    run: Path,
    *,
    config: ConfigFile = None,
    model: ModelConfig = ModelConfig(),  # noqa: B008 (frozen)
    training: TrainingConfig = TrainingConfig(),  # noqa: B008
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    resume: Literal["auto", "never"] = "never",
    quiet: bool = False,
) -> None:
    """Train a model on a prepared log; --resume auto continues after a stop.

    Args:
        log: folder that ``prepare`` wrote
        run: folder of the run: configuration, weights, vocabulary, logs, checkpoints
        resume: auto continues a run that was stopped; never refuses a folder that was used
        quiet: show nothing but errors
    """
    from blossomrec.data.log import EventLog
    from blossomrec.recommender import BlossomRec

    resolved = RunConfig(model, training, evaluation)
    check(resolved)
    events = EventLog.open(log)
    if not quiet:
        print(json.dumps(to_dict(resolved), indent=2))
    recommender = BlossomRec(resolved).fit(events, run, resume=resume, progress=not quiet)
    result = recommender.training
    if not quiet and result is not None:
        print(
            f"best epoch {result.best_epoch} of {result.epochs}, "
            + ", ".join(
                f"{name} {value:.4f}" for name, value in result.validation.items() if "@10" in name
            )
            + f" (validation), {result.seconds:.0f} s; next: blossomrec evaluate {run}"
        )


def evaluate(
    model: str,
    *,
    log: Path | None = None,
    on: Literal["test", "valid"] = "test",
    ranking: Literal["full", "uni100"] | None = None,
    filter_seen: Literal["auto", "yes", "no"] | None = None,
    split: Literal["leave-one-out", "global-time"] | None = None,
    ks: tuple[int, ...] | None = None,
    out: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Measure a run, or a simple baseline, on the held-out events of a log.

    Args:
        model: a run folder, or popularity, recent-popularity or transitions
        log: prepared log; a run knows the one it was trained on
        on: which held-out events
        ranking: full ranks among all items, uni100 among 100 sampled ones and is labelled so
        filter_seen: leave items of the history out of the ranking
        split: how a baseline's events are held out; a run keeps the split it was trained with
        ks: cut-offs of the metrics
        out: folder whose subfolder evaluations gets it; a run's own folder without it
        device: where to compute
    """
    from blossomrec.data.log import EventLog
    from blossomrec.evaluation.storage import save_evaluation
    from blossomrec.evaluation.tables import evaluation_table
    from blossomrec.experiments.measure import BASELINES, evaluate_baseline, evaluate_run
    from blossomrec.experiments.run_report import evaluation_path

    options: dict[str, Any] = {"ranking": ranking, "filter_seen": filter_seen, "ks": ks}
    if model in BASELINES:
        if log is None:
            raise ConfigError(f"--log is needed to evaluate {model}")
        measured = evaluate_baseline(model, EventLog.open(log), on=on, split=split, **options)
    elif split is not None:
        raise ConfigError(f"--split {split} is for baselines: {model} keeps the split of its run")
    else:
        measured = evaluate_run(model, log, on=on, device=device, **options)
        out = out or Path(model)
        _write_metrics(Path(model), on, measured)
    if out is not None:
        save_evaluation(measured, evaluation_path(out, on, measured.protocol.ranking))
    _console().print(evaluation_table(model, measured))


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
    from blossomrec.evaluation.storage import load_evaluation
    from blossomrec.evaluation.tables import comparison_table

    paths = [_find_evaluation(path, on, ranking) for path in (first, second)]
    tests = paired(*(load_evaluation(path) for path in paths))
    _console().print(comparison_table(str(first), str(second), tests))


def recommend(
    run: Path,
    *,
    user: Annotated[list[str] | None, Parameter(help="user id; may be given again")] = None,
    history: Annotated[str | None, Parameter(help="item ids, oldest first, with commas")] = None,
    k: int = 10,
    log: Path | None = None,
    items: Annotated[str | None, Parameter(help="item ids to choose from, with commas")] = None,
    filter_viewed: bool = True,
    unknown: Literal["skip", "refuse"] = "skip",
    json: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Recommend items for users of the log or for any list of items.

    Args:
        run: run folder, or what save_pretrained wrote
        k: how many items for each user
        log: prepared log with the users' histories; a run knows the one it was trained on
        filter_viewed: leave out what is in the history; --no-filter-viewed does not
        unknown: what to do with items of the history that the model does not know
        json: print JSON instead of a table
        device: where to compute
    """
    from blossomrec.recommender import BlossomRec

    if (user is None) == (history is None):
        raise ConfigError("give either --user or --history")
    recommender = BlossomRec.from_pretrained(run, log, device=device)
    options: dict[str, Any] = {"filter_viewed": filter_viewed, "items": _list(items)}
    if user is not None:
        frame = recommender.recommend(user, k, **options)
    else:
        frame = recommender.recommend_history(_list(history) or [], k, unknown=unknown, **options)
    if json:
        print(frame.write_json())
    else:
        _print_frame(frame)


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
    from blossomrec.experiments.run_report import write_run_report

    write_run_report(runs, out, title=title)
    print(f"wrote {out}")


def demo(
    folder: Path = Path("runs/demo"),
    *,
    events: Annotated[Path | None, Parameter(help="your own table of events")] = None,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str = "timestamp",
    epochs: int = 12,
    seed: int = 0,
) -> None:
    """The whole path on simulated events or on your own file.

    Args:
        folder: where log, runs and report go; training that was stopped goes on
        user: column of the user ids in your own table
        item: column of the item ids
        timestamp: column of the times
        epochs: most epochs for each model
        seed: of the simulated events and of the training
    """
    from blossomrec.demo import run_demo

    run_demo(
        folder,
        events=events,
        user=user,
        item=item,
        timestamp=timestamp,
        epochs=epochs,
        seed=seed,
    )


def reproduce(
    logs: Path,
    *,
    out: Path = Path("results/accuracy.jsonl"),
    runs: Path = Path("runs/accuracy"),
    datasets: list[str] | None = None,
    models: list[str] | None = None,
    seed: int = 0,
    epochs: int | None = None,
    jobs: int = 1,
) -> None:
    """Measure the models side by side on prepared logs, into a results file.

    Args:
        logs: folder with a prepared log for each data set, such as ml-1m or amazon-beauty
        out: JSONL file that gets a line for each model, data set and ranking
        runs: where the run folders go; training that was stopped goes on
        datasets: names of data sets, all that are known without it
        models: SASRec, BlossomRec; both without it
        seed: of the training
        epochs: most epochs, if other than a data set's own
        jobs: how many train at the same time on the device
    """
    from blossomrec.experiments import accuracy

    accuracy.measure_all(
        logs,
        runs,
        out,
        datasets=datasets or tuple(accuracy.DATASETS),
        models=models or tuple(accuracy.MODELS),
        seed=seed,
        epochs=epochs,
        jobs=jobs,
    )


def _write_metrics(run: Path, on: str, measured: Evaluation) -> None:
    """Keep ``metrics.json``, the run's headline numbers, up to date."""
    from blossomrec.training.files import write_json

    path = run / "metrics.json"
    try:
        known = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}; remove it and evaluate again") from error
    write_json(path, known | {f"{on}-{measured.protocol.ranking}": measured.metrics})


def _find_evaluation(path: Path, on: str, ranking: str) -> Path:
    from blossomrec.experiments.run_report import evaluation_path

    if path.suffix == ".json":
        return path
    found = evaluation_path(path, on, ranking)
    if not found.is_file():
        options = f"--on {on} --ranking {ranking}"
        raise RunError(f"{path} holds no {found.name}: run  blossomrec evaluate {path} {options}")
    return found


def _list(text: str | None) -> list[str] | None:
    return None if text is None else [one.strip() for one in text.split(",") if one.strip()]


def _console() -> Any:
    from rich.console import Console

    return Console(file=sys.stdout)


def _print_frame(frame: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in frame.columns:
        justify = "right" if name in ("score", "rank") else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for row in frame.iter_rows():
        cells = (f"{one:.4f}" if isinstance(one, float) else str(one) for one in row)
        # Square brackets in ids are no markup.
        table.add_row(*map(Text, cells))
    _console().print(table)
