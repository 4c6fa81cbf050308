"""The trials of a search under way: which one is next, and what is kept of one that has ended."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from blossomrec.tuning.outcome import trial_line, trials_of, write_outcome
from blossomrec.tuning.study import Search
from blossomrec.tuning.trial import ToldTrial, failed

if TYPE_CHECKING:
    import optuna

# A trial that its worker does not survive is done again so many times: its options may be why.
AGAIN = 2
# Under this name the study knows of a trial the how many-th repetition it is.
REPETITION = "repetition"


class Trials:
    """What an engine asks for trials and tells of them; of the process that holds the study.

    Args:
        folder: of the search, locked.
        progress: print a line for each trial that has ended on standard error.
    """

    def __init__(self, folder: Path, search: Search, study: optuna.Study, *, progress: bool):
        self.folder, self.search, self.study = folder, search, study
        self._progress = progress
        # Those under way belong to a process that is gone: nobody else has the lock.
        self._broken_off = [trial.number for trial in self._all() if trial.state.name == "RUNNING"]
        minutes = search.options.minutes
        self._deadline = time.monotonic() + 60 * minutes if minutes else float("inf")

    def next(self) -> int | None:
        """The next trial to train, begun in the study; None where no more is to begin."""
        if time.monotonic() >= self._deadline:
            return None
        if self._broken_off:
            return self._broken_off.pop(0)
        trials = self._all()
        # One that waits was not begun; a repetition is no trial more.
        waits = {trial.state.name == "WAITING" for trial in trials if _is_repetition(trial)}
        begun = sum(trial.state.name != "WAITING" for trial in trials if not _is_repetition(trial))
        if begun >= self.search.options.trials and True not in waits:
            return None
        if not begun and (own := self.search.space.values_of(self.search.config)):
            self.study.enqueue_trial(own, skip_if_exists=True)
        return self.study.ask().number

    def lost(self, number: int, reason: str) -> None:
        """The worker of a trial is gone: the trial has failed, and waits to be done again."""
        trial = self._all()[number]
        if not trial.state.is_finished():
            ToldTrial(self.search, self.study, number).end(failed(reason))
            times = trial.user_attrs.get(REPETITION, 0)
            if times < AGAIN:
                self.study.enqueue_trial(trial.params, user_attrs={REPETITION: times + 1})
        self.settle(number)

    def settle(self, number: int) -> None:
        """Write down what is known, and keep of the runs what is to stay."""
        trials = trials_of(self.study)
        write_outcome(self.folder, self.search, trials)
        if self._progress:
            ended = next(trial for trial in trials if trial["trial"] == number)
            print(trial_line(ended, len(trials)), file=sys.stderr, flush=True)

    def _all(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False)


def _is_repetition(trial: optuna.trial.FrozenTrial) -> bool:
    return REPETITION in trial.user_attrs
