"""One round of the daily loop: take what is new, train, judge, have it served, tell of it.

Wherever it is killed, the next round goes on: ``update.json`` says how far it was. What was taken
in is in the log, training resumes from its checkpoint, a decision that was written down stays.
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blossomrec.config import RunConfig
from blossomrec.data.identity import differences, identity_digest
from blossomrec.data.log import LOG_FILE, LOG_FORMAT, EventLog
from blossomrec.data.vocabulary import read_description
from blossomrec.errors import ConfigError, DataError, RunError, TrainingError
from blossomrec.files import locked, remove
from blossomrec.recommender import BlossomRec
from blossomrec.run.description import read_run_config
from blossomrec.run.weights import read_weights
from blossomrec.updating.gate import judge
from blossomrec.updating.options import DailyOptions
from blossomrec.updating.rollback import go_back
from blossomrec.updating.runs import Runs, line_of
from blossomrec.updating.servers import take_new_run
from blossomrec.updating.sources import take_in

Tell = Callable[[str], None]


def update(
    log: str | Path,
    runs: str | Path,
    config: RunConfig | None = None,
    options: DailyOptions | None = None,
    *,
    tell: Tell = print,
    progress: bool = True,
) -> dict[str, Any]:
    """Bring log, model and servers up to date; or go on with an update that was broken off.

    New events are appended to the log, each once, and users who were deleted in the store leave it.
    A run is trained from the one in use, ``current``, measured with it on the newest events, and
    takes its place if it is not worse; servers of ``current`` are told, and must answer with it.

    Args:
        log: folder of the log.
        runs: folder of the runs; see :mod:`blossomrec.updating.runs`.
        config: of the run; None is that of the run in use, or the defaults for the first one.
        options: where events come from, and when a run is taken.
        tell: gets a line for each step.
        progress: show how training goes.

    Returns:
        The line of ``updates.jsonl``.

    Raises:
        RunError: another update is at work, the folder is damaged, or the store is another one.
        DataError: there is no log, or it does not take the events; nothing is lost.
        RankLostError: one of several ranks was lost; the next update goes on with the training.
        TrainingInterrupted: a signal came in training; the next update goes on with it.
        SystemExit: the same, where several ranks train.

    Example:
        >>> update("log", "runs", options=DailyOptions(store="events.sqlite"))["why"]
    """
    folder = Runs(runs)
    # Before anything is made for it.
    read_description(Path(log) / LOG_FILE, LOG_FORMAT, "a prepared log of events")
    with locked(folder.folder):
        given = (options or DailyOptions()).checked()
        return _Update(Path(log), folder, config, given, tell, progress).carry_out()


class _Update:
    """An update under way; ``state`` is what ``update.json`` says of it."""

    def __init__(
        self,
        log: Path,
        runs: Runs,
        config: RunConfig | None,
        options: DailyOptions,
        tell: Tell,
        progress: bool,
    ):
        self.log, self.runs, self.config, self.options = log, runs, config, options
        self.tell, self.progress = tell, progress
        self.state = runs.pending() or {}
        # Where nothing had been done yet, it begins now.
        if not self.state.get("taken_in") and "run" not in self.state:
            self.state = {"started": time.time(), "taken_in": {}}

    def carry_out(self) -> dict[str, Any]:
        if "decision" not in self.state:
            self._drop_left()
            if "run" not in self.state:
                self._take_in()
            log = EventLog.open(self.log)
            if "run" in self.state or self._begin(log):
                self._decide(log)
            elif not self._offer_again():
                return self._nothing()
        return self._apply()

    def _drop_left(self) -> None:
        """Drop a training that began as a run which is not in use any more."""
        if "run" in self.state and self.runs.current() != self.state["from"]:
            remove(self.runs.path(self.state.pop("run")))
            del self.state["from"]
            self._save()

    def _take_in(self) -> None:
        """Append what is new to the log."""
        self._save()
        if self.options.store is None and not self.options.events:
            self.tell("no store and no tables are given: what the log has is taken")
        for taken in take_in(self.log, self.runs.folder, self.options):
            self.state["taken_in"][taken.key] = taken.counts
            self._save()
            self.tell(taken.told)

    def _begin(self, log: EventLog) -> bool:
        """Give the run a name; False where there is nothing to train on since the last one."""
        current = self.runs.current()
        tried = [line for line in self.runs.history() if line.get("log")]
        if current is not None:
            known = read_run_config(self.runs.path(current)).log
            last = tried[-1]["log"] if tried else None
            if log.digest in (last, known and identity_digest(known)):
                return False
        self.state |= {"run": self.runs.next_name(), "from": current}
        self._save()
        return True

    def _offer_again(self) -> bool:
        """Take the run that a server did not take the last time; False where there is none."""
        line = self.runs.not_served()
        if line is None:
            return False
        run, before = line["rolled_back"], line["used"]
        self.tell(f"{self.runs.path(run)} is offered again: {line['why']}")
        decision = {"taken": True, "why": f"offered again: {line['why']}"}
        self.state |= {"run": run, "from": before, "decision": decision}
        self._save()
        return True

    def _decide(self, log: EventLog) -> None:
        """Train the run and judge it; the decision is written down."""
        before, started = self.state["from"], time.monotonic()
        try:
            self._train(log)
        except (DataError, TrainingError) as error:
            # Without a run in use there is nothing to go on with.
            if before is None:
                raise
            decision = {"taken": False, "why": f"not trained: {error}"}
        else:
            decision = self._judged(log)
        self.state["training_seconds"] = round(time.monotonic() - started, 1)
        self.state |= {"decision": decision, "log": log.digest}
        self._save()

    def _train(self, log: EventLog) -> None:
        run = self.runs.path(self.state["run"])
        if _is_of_another(run, log):
            remove(run)
        begun = run.exists()
        if begun:
            # Somebody else may be at work there.
            with locked(run):
                pass
        self.tell(f"training {run}" + (" goes on" if begun else ""))
        try:
            self._fit(log, run)
        except (RunError, ConfigError):
            # What was begun cannot be gone on with, such as with other options: it begins again.
            if not begun:
                raise
            # Not lost where these options are wrong in any case.
            aside = run.with_name(f".{run.name}")
            remove(aside)
            run.rename(aside)
            try:
                self._fit(log, run)
            except (RunError, ConfigError):
                remove(run)
                aside.rename(run)
                raise
            remove(aside)

    def _fit(self, log: EventLog, run: Path) -> None:
        before = self.state["from"]
        config = self.config
        if config is None:
            config = read_run_config(self.runs.path(before)).config if before else RunConfig()
        if before is not None:
            tokens = min(config.training.tokens_per_batch, self.options.tokens_per_batch)
            limits = {"minutes": float(self.options.minutes), "tokens_per_batch": tokens}
            training = dataclasses.replace(config.training, **limits)
            config = dataclasses.replace(config, training=training)
        from_run = None if before is None else self.runs.path(before)
        if config.training.devices > 1:
            self._launch(config, run, from_run)
            return
        BlossomRec(config).fit(log, run, resume="auto", progress=self.progress, from_run=from_run)

    def _launch(self, config: RunConfig, run: Path, from_run: Path | None) -> None:
        """Train by several ranks of this machine."""
        from blossomrec.training.ranks.launch import launch

        arguments = ["train", str(self.log), str(run), "--resume", "auto"]
        arguments += [] if from_run is None else ["--from", str(from_run)]
        again = shlex.join(["blossomrec", "update", str(self.log), str(self.runs.folder)])
        launch(config, arguments if self.progress else [*arguments, "--quiet"], again)

    def _judged(self, log: EventLog) -> dict[str, Any]:
        before, run = self.state["from"], self.runs.path(self.state["run"])
        if before is None:
            return {"taken": True, "why": "the first run"}
        if _same_weights(run, self.runs.path(before)):
            return {"taken": False, "why": "training found nothing better than the run in use"}
        options = self.options
        verdict = judge(
            run, self.runs.path(before), log, tolerance=options.tolerance, most=options.cases
        )
        return {"taken": verdict.taken, "why": verdict.why, "metrics": verdict.metrics}

    def _apply(self) -> dict[str, Any]:
        """Do what was decided, and have the servers do it."""
        run, before = self.state["run"], self.state["from"]
        with self.runs.changing():
            line = self._recorded() or self._used()
            in_use = self.runs.current() == run
        self._told(line)
        if line["taken"] and in_use:
            served = take_new_run(self.runs, run, self.options.wait)
            for one in served:
                self.tell(one.told)
            refused = [one.told for one in served if not one.took]
            if refused and before is not None:
                why = f"a server did not take it: {refused[0]}"
                go_back(self.runs, run, before, why=why, not_served=True)
                take_new_run(self.runs, before, self.options.wait)
                self.tell(f"{self.runs.link} leads to {before} again: {why}")
                line = line | {"taken": False, "why": why}
        return self._finish(line)

    def _used(self) -> dict[str, Any]:
        """Use the run if that was decided, and write the line of the history."""
        run, before, decision = self.state["run"], self.state["from"], self.state["decision"]
        current = self.runs.current()
        if decision["taken"] and current not in (before, run):
            decision = decision | {"taken": False, "why": f"meanwhile {current} is in use"}
        if decision["taken"]:
            self.runs.use(run)
        return self._record(decision)

    def _record(self, decision: dict[str, Any]) -> dict[str, Any]:
        line = line_of(self.state, decision)
        self.runs.record(line)
        return line

    def _recorded(self) -> dict[str, Any] | None:
        """The line of this update, where it was written before a kill."""
        same = [one for one in self.runs.history() if one["started"] == self.state["started"]]
        return same[0] if same else None

    def _told(self, line: dict[str, Any]) -> None:
        run = f"{self.runs.path(line['run'])} " if "run" in line else ""
        self.tell(f"{run}{'taken' if line['taken'] else 'not taken'}: {line['why']}")

    def _nothing(self) -> dict[str, Any]:
        """The end of an update for which there is nothing to do."""
        with self.runs.changing():
            line = self._recorded() or self._record({"taken": False, "why": "nothing is new"})
        self._told(line)
        return self._finish(line)

    def _finish(self, line: dict[str, Any]) -> dict[str, Any]:
        """Remove what is not kept."""
        with self.runs.changing():
            removed = self.runs.prune(self.options.keep)
        self.runs.clear_pending()
        if removed:
            self.tell(f"removed {', '.join(removed)}")
        return line

    def _save(self) -> None:
        self.runs.write_pending(self.state)


def _is_of_another(run: Path, log: EventLog) -> bool:
    """Whether a run was begun with a log that has changed since, so that it cannot be resumed."""
    if not (run / "config.json").exists():
        return False
    try:
        known = read_run_config(run).log
    except RunError:
        return True
    return bool(differences(known or {}, log.identity))


def _same_weights(first: Path, second: Path) -> bool:
    one, other = (read_weights(run / "model.safetensors") for run in (first, second))
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
