"""The whole path in one sitting: events, training, comparison, report, recommendations."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from blossomrec import terminal
from blossomrec.config import EvaluationConfig, ModelConfig, RunConfig, TrainingConfig
from blossomrec.data.log import EventLog
from blossomrec.data.simulate import SimulationConfig, simulate
from blossomrec.data.summary import summary_table
from blossomrec.demo.later import keep_back, update_demo
from blossomrec.evaluation import Evaluation, resolve_filter_seen
from blossomrec.evaluation.evaluation import evaluation_path, save_evaluation
from blossomrec.measure import evaluate_baseline, evaluate_run
from blossomrec.models.baselines import BASELINES
from blossomrec.recommender import BlossomRec
from blossomrec.report.report import write_run_report
from blossomrec.report.sections import Later
from blossomrec.report.tables import comparison_of_models
from blossomrec.terminal import show, show_rule

# Small enough for two processor cores.
SIMULATION = SimulationConfig(users=1_000, items=1_000)
MODEL = ModelConfig(hidden_size=64, heads=4, kv_heads=2, inner_size=128)
TRAINING = TrainingConfig(tokens_per_batch=2_048, learning_rate=3e-3, warmup_steps=50, patience=3)
BLOSSOM, DENSE = "BlossomRec", "SASRec"
ATTENTION = {BLOSSOM: "blossom", DENSE: "full"}


def run_demo(
    folder: Path,
    *,
    events: Path | None = None,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str = "timestamp",
    epochs: int = 12,
    seed: int = 0,
    console: Console | None = None,
) -> None:
    """Prepare a log, train BlossomRec and SASRec, compare them with simple models, write a report.

    What there is to see comes as early as it can: simple models before any training, a report as
    soon as the first model is trained.

    Of simulated events the last ones are kept back as those that come later, by which the run
    is brought up to date.

    Training goes on where it was stopped if the demo is started again.

    Args:
        folder: gets ``log/``, a folder for each model, ``report.html`` and, of simulated events,
            ``later/`` and the run ``00001``, to which ``current`` leads if it is not worse.
        events: a table of events; None simulates some.
        user, item, timestamp: columns of that table.
        epochs: most epochs for each model.
    """
    console = console or terminal.console()
    folder = Path(folder)
    training = dataclasses.replace(TRAINING, epochs=epochs, seed=seed)
    recommenders = {
        name: BlossomRec(RunConfig(dataclasses.replace(MODEL, attention=attention), training))
        for name, attention in ATTENTION.items()
    }
    show_rule(console, "Events")
    kept = None
    if events is None:
        kept = keep_back(simulate(dataclasses.replace(SIMULATION, seed=seed)))
        log = EventLog.prepare(kept.before, folder / "log")
    else:
        log = EventLog.prepare(events, folder / "log", user=user, item=item, timestamp=timestamp)
    show(console, summary_table(log.summary))

    show_rule(console, "Simple models, which need no training")
    measured = _measure_baselines(log)
    show(console, comparison_of_models(measured))
    measured = _train(console, recommenders[BLOSSOM], folder / BLOSSOM, log, measured)
    show_rule(console, "Recommendations")
    user = _show_recommendations(console, folder / BLOSSOM, log)
    title = "Simulated events" if events is None else events.name
    report = _write_report(folder, title, measured)
    console.print(f"A first report with plots: {report}", markup=False, soft_wrap=True)
    measured = _train(console, recommenders[DENSE], folder / DENSE, log, measured)
    later = None
    if kept is not None:
        show_rule(console, "Later: new events, and an update")
        later = update_demo(folder, kept, BLOSSOM, console)
    show_rule(console, "More")
    _write_report(folder, title, measured, later)
    run, log_folder, store = (
        shlex.quote(str(folder / name)) for name in (BLOSSOM, "log", "events.sqlite")
    )
    for line in (
        f"Report with plots: {report}",
        f"More: blossomrec recommend {run} --user={shlex.quote(user)} --k 10",
        f"Live: blossomrec import-events {log_folder} --store {store}",
        f"      blossomrec serve {run} --store {store}    then open http://127.0.0.1:8000",
    ):
        console.print(line, markup=False, soft_wrap=True)


def _measure_baselines(log: EventLog) -> dict[str, Evaluation]:
    """The baselines that suit the log, by name."""
    filter_seen = resolve_filter_seen(EvaluationConfig(), log)
    suited = [one for one in BASELINES if BASELINES.get(one).suits(log, filter_seen=filter_seen)]
    return {name: evaluate_baseline(name, log) for name in suited}


def _train(
    console: Console,
    recommender: BlossomRec,
    run: Path,
    log: EventLog,
    measured: dict[str, Evaluation],
) -> dict[str, Evaluation]:
    """Train the model of a run and show it among those measured before; gives all of them."""
    show_rule(console, f"Training {run.name}")
    recommender.fit(log, run, resume="auto")
    show_rule(console, "Comparison on the held-out last event of every user")
    measured = {run.name: evaluate_run(run, log)} | measured
    show(console, comparison_of_models(measured))
    return measured


def _write_report(
    folder: Path, title: str, measured: dict[str, Evaluation], later: Later | None = None
) -> Path:
    for name, evaluation in measured.items():
        save_evaluation(evaluation, evaluation_path(folder / name))
    runs = {name: folder / name for name in measured}
    write_run_report(runs, folder / "report.html", title=title, later=later)
    return folder / "report.html"


def _show_recommendations(console: Console, run: Path, log: EventLog) -> str:
    """The longest history of the log: its last items, and what comes next; gives whose it is."""
    recommender = BlossomRec.from_pretrained(run, log)
    row = int((log.offsets[1:] - log.offsets[:-1]).argmax())
    user: Any = log.user_vocabulary.ids([row])[0]
    recent = log.item_vocabulary.ids(log.history(row).items[-5:]).to_list()
    frame = recommender.recommend([user], k=5)
    # Square brackets in ids are no markup.
    for line in (
        f"User {user}, {len(log.history(row))} events, the last items: {recent}",
        "Next: " + ", ".join(map(str, frame["item_id"].to_list())),
    ):
        console.print(line, markup=False, soft_wrap=console.width >= terminal.UNLIMITED)
    return str(user)
