"""What each verb of the command line does. Heavy imports wait until a verb runs."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from blossomrec.config import (
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    ServingConfig,
    TrainingConfig,
    check,
    option,
    to_dict,
)
from blossomrec.data.growth.options import AppendOptions
from blossomrec.data.reading.options import EventOptions, PrepareOptions
from blossomrec.errors import ConfigError, RunError
from blossomrec.models.baselines import BASELINES
from blossomrec.recommendation.options import (
    COMMAS,
    BulkOptions,
    RecommendOptions,
    RuleOptions,
    Several,
)
from blossomrec.rolling.options import RollingOptions, UpdateOptions
from blossomrec.terminal import console, show
from blossomrec.tuning.options import TuneOptions
from blossomrec.updating.options import DailyOptions

ConfigFile = Annotated[
    Path | None,
    Parameter(
        help="YAML, TOML or JSON file with model, training, evaluation options; or the preset "
        "paper: BlossomRec as published"
    ),
]


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
        None, "metrics of installed packages to measure as well"
    )


def prepare(
    source: Path,
    folder: Path,
    *,
    options: Annotated[
        PrepareOptions, Parameter(name="*", consume_multiple=True)
    ] = PrepareOptions(),  # noqa: B008
) -> None:
    """Read a table of events, check it, write the memory-mapped log.

    Args:
        source: .parquet, .csv, .tsv or RecBole's .inter file, or a folder or pattern of such files
        folder: where the prepared log goes; a prepared log that is there is replaced
    """
    from blossomrec.data.log import EventLog
    from blossomrec.data.preparation import summary_table

    log = EventLog.prepare(source, folder, **vars(options))
    _show(summary_table(log.summary))
    run = f"runs/{folder.resolve().name}"
    print("next:", shlex.join(["blossomrec", "train", str(folder), run]))


def append(
    log: Path,
    source: Path,
    *,
    options: Annotated[AppendOptions, Parameter(name="*")] = AppendOptions(),  # noqa: B008
) -> None:
    """Append a table of events to a log, at the cost of what is appended.

    Args:
        log: folder that ``prepare`` wrote
        source: file, folder or pattern, as of ``prepare``; what was appended before changes nothing
    """
    from blossomrec.data.growth.append import append_events
    from blossomrec.data.growth.appended import appended_table

    _show(appended_table(append_events(source, log, options)))


def compact(log: Path) -> None:
    """Merge what was appended to a log, as opening it does.

    Args:
        log: folder that ``prepare`` wrote
    """
    from blossomrec.data.growth.compact import compact_folder

    segments = compact_folder(log)
    print(f"merged {segments:,} appended tables" if segments else "there is nothing to merge")


def forget(log: Path, user: str) -> None:
    """Remove a user from a log, so that nothing of that user is left on disk.

    Args:
        log: folder that ``prepare`` wrote
        user: id
    """
    from blossomrec.data.growth.forget import forget_user

    forgotten = forget_user(log, user)
    print(f"removed user {forgotten.user!r} with {forgotten.events:,} events from {log}")


def train(
    log: Path,
    run: Path,
    *,
    from_run: Annotated[Path | None, Parameter(name="--from")] = None,
    config: ConfigFile = None,
    model: ModelConfig = ModelConfig(),  # noqa: B008 (frozen)
    training: TrainingConfig = TrainingConfig(),  # noqa: B008
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    resume: Literal["auto", "never"] = "never",
    verbose: bool = False,
    quiet: bool = False,
) -> None:
    """Train a model on a prepared log; --resume auto continues after a stop.

    Args:
        log: folder that ``prepare`` wrote
        run: folder of the run: configuration, weights, vocabulary, logs, checkpoints
        from_run: folder of a run that is brought up to date: the model begins as it, with its own
            options where none are given, and is trained on the events that it was not; it stays as
            it is
        resume: auto continues a run that was stopped, with its own options where none are given;
            never refuses a folder that was used
        verbose: print the whole configuration first
        quiet: show nothing but errors
    """
    from blossomrec.data.log import EventLog
    from blossomrec.recommender import BlossomRec
    from blossomrec.training import TrainingInterrupted

    resolved = RunConfig(model, training, evaluation)
    check(resolved)
    events = EventLog.open(log)
    if verbose:
        print(json.dumps(to_dict(resolved), indent=2), flush=True)
    try:
        recommender = BlossomRec(resolved).fit(
            events, run, resume=resume, progress=not quiet, from_run=from_run
        )
    except TrainingInterrupted as stop:
        command = shlex.join(["blossomrec", "train", str(log), str(run), "--resume", "auto"])
        raise TrainingInterrupted(stop.signum, command) from stop
    result = recommender.training
    if not quiet and result is not None:
        print(
            f"best epoch {result.best_epoch} of {result.epochs}"
            + (", " if result.best_epoch or from_run is None else " (as it began), ")
            + ", ".join(
                f"{name} {value:.4f}" for name, value in result.validation.items() if "@10" in name
            )
            + f" (validation), {result.seconds:.0f} s; next: blossomrec evaluate {run}"
        )


def update(
    log: Path,
    runs: Path,
    *,
    options: Annotated[DailyOptions, Parameter(name="*")] = DailyOptions(),  # noqa: B008
    config: ConfigFile = None,
    model: ModelConfig = ModelConfig(),  # noqa: B008
    training: TrainingConfig = TrainingConfig(),  # noqa: B008
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    quiet: bool = False,
) -> None:
    """Take what is new into log and model, and the model into use if it is not worse.

    Args:
        log: folder that ``prepare`` wrote
        runs: folder of runs, whose link ``current`` leads to the one in use
        quiet: show nothing but errors
    """
    from blossomrec.updating.loop import update as update_once
    from blossomrec.updating.options import seconds_of
    from blossomrec.updating.runs import Runs
    from blossomrec.updating.schedule import repeat

    resolved = RunConfig(model, training, evaluation)
    check(resolved)
    options.checked()

    def tell(line: str) -> None:
        # At once, for whoever reads it in the log of a service.
        if not quiet:
            print(line, flush=True)

    def once() -> None:
        update_once(log, runs, resolved, options, tell=tell, progress=not quiet)

    if options.every is None:
        once()
    else:
        repeat(Runs(runs), seconds_of(options.every), once, tell)


def rollback(runs: Path, *, wait: float = 600.0) -> None:
    """Use the run again that was in use before the last update.

    Args:
        runs: folder of runs, as of ``update``
        wait: seconds in which a server must answer with it
    """
    from blossomrec.updating.rollback import roll_back

    roll_back(runs, wait=wait)


def tune(
    log: Path,
    folder: Path,
    *,
    options: Annotated[TuneOptions, Parameter(name="*")] = TuneOptions(),  # noqa: B008
    config: ConfigFile = None,
    model: ModelConfig = ModelConfig(),  # noqa: B008
    training: TrainingConfig = TrainingConfig(),  # noqa: B008
    evaluation: EvaluationConfig = EvaluationConfig(),  # noqa: B008
    verbose: bool = False,
    quiet: bool = False,
) -> None:
    """Search for the options that do best on the validation events of a log.

    Args:
        log: folder that ``prepare`` wrote
        folder: of the search; where one was stopped, it goes on
        verbose: show each training, where one runs at a time
        quiet: show nothing but the outcome and errors
    """
    from blossomrec.tuning.outcome import outcome_table
    from blossomrec.tuning.search import tune as search

    base = RunConfig(model, training, evaluation)
    result = search(log, folder, base, progress=not quiet, verbose=verbose, **vars(options))
    _show(outcome_table(result))
    if result.config is not None:
        best = ["--config", str(folder / "best.yaml")]
        print("next:", shlex.join(["blossomrec", "train", str(log), "runs/tuned", *best]))


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

    Args:
        log: prepared log; a run knows the one it was trained on
        on: which held-out events
        out: folder whose subfolder evaluations gets it; a run's own folder without it
        device: where to compute
    """
    from blossomrec.data.log import EventLog
    from blossomrec.evaluation.evaluation import evaluation_path, save_evaluation
    from blossomrec.measure import evaluate_baseline, evaluate_run
    from blossomrec.report.tables import evaluation_table
    from blossomrec.run import write_metrics

    given = vars(options) | {"own_metrics": options.own_metrics or ()}
    if model in BASELINES:
        if log is None:
            raise ConfigError(f"--log is needed to evaluate {model}")
        measured = evaluate_baseline(model, EventLog.open(log), on=on, **given)
    else:
        try:
            measured = evaluate_run(model, log, on=on, device=device, **given)
        except RunError as error:
            if Path(model).exists():
                raise
            raise RunError(f"{error}, nor a baseline: {', '.join(BASELINES)}") from error
    # Shown first: where nothing can be written, the work is not lost.
    _show(evaluation_table(model, measured))
    try:
        if model not in BASELINES:
            write_metrics(model, f"{on}-{measured.protocol.ranking}", measured.metrics)
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
    _show(rolled_table(rolled))
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
    from blossomrec.evaluation import compare_kinds
    from blossomrec.evaluation.evaluation import find_evaluation, load_evaluation
    from blossomrec.report.tables import comparison_table

    paths = [find_evaluation(path, on, ranking) for path in (first, second)]
    measured = [load_evaluation(path) for path in paths]
    tests, by_kind = paired(*measured), compare_kinds(*measured)
    _show(comparison_table(str(first), str(second), tests, measured[0].protocol, by_kind))


def recommend(
    run: Path,
    *,
    user: Annotated[list[str] | None, Parameter(help="user id; may be given again")] = None,
    history: Annotated[str | None, Parameter(help=f"item ids, oldest first, {COMMAS}")] = None,
    k: int = 10,
    log: Path | None = None,
    bulk: Annotated[BulkOptions, Parameter(name="*")] = BulkOptions(),  # noqa: B008
    options: Annotated[RecommendOptions, Parameter(name="*")] = RecommendOptions(),  # noqa: B008
    by_rule: Annotated[RuleOptions, Parameter(name="*")] = RuleOptions(),  # noqa: B008
    unknown: Literal["skip", "refuse"] | None = None,
    json: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Recommend items for users of the log or for any list of items.

    Args:
        run: run folder, or what save_pretrained wrote
        k: how many items for each user
        log: prepared log with the users' histories; a run knows the one it was trained on
        unknown: what to do with items of --history that the model does not know (skip without
            it), or with users of --users who are not in the log (refuse without it)
        json: print JSON instead of a table
        device: where to compute
    """
    from blossomrec.data.units import moment_of
    from blossomrec.recommender import BlossomRec

    if [user is not None, history is not None, bulk.users is not None, bulk.all].count(True) != 1:
        raise ConfigError("give either --user or --history, or --all or --users with --out")
    bulk.check()
    rules = by_rule.rules()
    if rules is not None and history is not None:
        raise ConfigError("--history takes no rules: give --user, --users or --all")
    if unknown is not None and history is None and bulk.users is None:
        raise ConfigError(f"unknown is {unknown}: only --history and --users may hold unknown ids")
    recommender = BlossomRec.from_pretrained(run, log, device=device)
    chosen: dict[str, Any] = vars(options) | {
        "items": _ids("items", options.items),
        "at": moment_of("at", options.at),
    }
    if history is None:
        chosen["rules"] = rules
    if bulk.out is not None:
        chosen |= {"shards": bulk.shards, "rows_per_file": bulk.rows_per_file}
        written = recommender.recommend_all(
            bulk.out, bulk.users, k, unknown=unknown or "refuse", **chosen
        )
        print(f"{written.rows:,} items for {written.users:,} users are in {bulk.out}")
        return
    if user is not None:
        frame = recommender.recommend(user, k, **chosen)
    else:
        given = _ids("history", history) or []
        frame = recommender.recommend_history(given, k, unknown=unknown or "skip", **chosen)
    _show_frame(frame, as_json=json)


def similar(
    run: Path,
    *,
    item: Annotated[list[str], Parameter(help="item id; may be given again")],
    k: int = 10,
    json: bool = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> None:
    """Show the items that a model holds to be closest to others.

    Args:
        run: run folder, or what save_pretrained wrote
        k: how many items for each one
        json: print JSON instead of a table
        device: where to compute
    """
    from blossomrec.recommender import BlossomRec

    frame = BlossomRec.from_pretrained(run, device=device).similar_items(item, k)
    _show_frame(frame, as_json=json)


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


def serve(
    run: Path,
    *,
    store: str = "events.sqlite",
    titles: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    options: Annotated[ServingConfig, Parameter(name="*")] = ServingConfig(),  # noqa: B008
    by_rule: Annotated[RuleOptions, Parameter(name="*")] = RuleOptions(),  # noqa: B008
    drain: float = 30.0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: int | None = None,
) -> None:
    """Answer requests over HTTP: append events, recommend, forget users.

    Args:
        run: run folder; SIGHUP reads it again without dropping a request
        store: SQLite file with the events, made where it is missing, or redis://HOST:PORT/DATABASE
        titles: table with the columns item_id and title, for the page; .parquet, .csv, .tsv, .item
        host: address; any but loopback needs a secret in the variable BLOSSOMREC_TOKEN
        port: 0 takes any that is free
        drain: seconds that requests under way have when the server is stopped
        device: where to compute
        threads: of PyTorch for one operation; half of the processor without it
    """
    from blossomrec.serving.command import serve as start

    where: dict[str, Any] = {"host": host, "port": port, "device": device, "threads": threads}
    start(run, store, options, **where, drain=drain, titles=titles, rules=by_rule.rules())


def import_events(
    source: Path,
    *,
    store: str = "events.sqlite",
    options: Annotated[EventOptions, Parameter(name="*")] = EventOptions(),  # noqa: B008
) -> None:
    """Load histories into the store of events of a server.

    Args:
        source: folder that ``prepare`` wrote, or a .parquet, .csv, .tsv or .inter file, which the
            other options are about
        store: as that of the server, which may be using it
    """
    from blossomrec.serving.stores import store_opener
    from blossomrec.serving.stores.bulk import import_events as load

    open_store, name = store_opener(store)
    imported = load(source, open_store(), **vars(options))
    print(
        f"{imported.users:,} users with {imported.events:,} events are new in {name}, "
        f"{imported.kept:,} users were there and stay as they are"
    )


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


def _ids(name: str, text: str | None) -> list[str] | None:
    """Ids with commas between them, as in a line of a CSV file; None where there is no text."""
    if text is None:
        return None
    found = []
    for quoted, plain in _ID.findall(text):
        if plain.startswith('"'):
            raise ConfigError(f"{name} has a quote that does not end with its id: {plain}")
        found.append(quoted.replace('""', '"') or plain.strip())
    return list(filter(None, found))


# In double quotes, a quote inside doubled, or up to the next comma.
_ID = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*(?=,|$)|([^,]*))(?:,|$)')


def _show(part: Any) -> None:
    show(console(), part)


def _show_frame(frame: Any, *, as_json: bool) -> None:
    """Print recommendations as a table or as JSON, which is valid in every encoding."""
    from blossomrec.report.tables import frame_table

    if not as_json:
        return _show(frame_table(frame))
    text = frame.write_json()
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text))
    print(text)
