"""Which events are trained on and which are held out for validation and test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blossomrec.config import EvaluationConfig
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError


@dataclass(frozen=True)
class Cases:
    """M things to predict: events ``history_end .. target_end-1`` of a user, from those before.

    users: user rows, int64 [M], never falling; history_end: position in the user's history of the
    first target, over 0, int64 [M]; target_end: position after the last target, int64 [M].
    """

    users: np.ndarray
    history_end: np.ndarray
    target_end: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def sample(self, count: int, seed: int) -> Cases:
        """``count`` of the cases, in order, always the same for a seed; all if there are fewer."""
        if count >= len(self):
            return self
        chosen = np.random.default_rng(seed).choice(len(self), size=count, replace=False)
        chosen.sort()
        return self._take(chosen)

    def last_of_each_user(self) -> Cases:
        """The case of each user that has the longest history: one for a history."""
        _, starts = np.unique(self.users, return_index=True)
        return self._take(np.append(starts[1:], len(self)) - 1 if len(self) else starts)

    def _take(self, chosen: np.ndarray) -> Cases:
        return Cases(self.users[chosen], self.history_end[chosen], self.target_end[chosen])


@dataclass(frozen=True)
class Split:
    """train_end: how many of each user's first events may be trained on, int64 [U]; held-out
    events are in ``valid`` and ``test``."""

    train_end: np.ndarray
    valid: Cases
    test: Cases


def make_split(log: EventLog, evaluation: EvaluationConfig) -> Split:
    """Split a log as ``evaluation.split`` says.

    leave-one-out: of users with at least 3 events the last one is the test target (its history
    includes the validation event), the last but one the validation target; all events of other
    users are trained on. With ``last_events`` over 1 so many events are tested and validated, each
    a case of its own whose history is all that came before it, of users who have one event more.

    global-time: the share ``test_share`` of all events that is last in time is the test period,
    ``valid_share`` before it the validation period; events at the time of a cut are after it. The
    targets are all events of a user in a period, their history all events before the period. Users
    without a history before the period are not predicted.

    Raises DataError where there is nothing to validate or test on, ConfigError for the shares.
    """
    lengths = np.diff(np.asarray(log.offsets))
    if evaluation.split == "leave-one-out":
        last = evaluation.last_events
        split = _leave_last_out(lengths, last)
        why = f"no user has {2 * last + 1:,} events or more, as the {split_name(evaluation)} needs"
    else:
        split, why = _global_time(log, lengths, evaluation)
    if len(split.test) == 0:
        raise DataError(f"{log.folder} leaves nothing to test on: {why}")
    if len(split.valid) == 0 and (evaluation.split == "leave-one-out" or evaluation.valid_share):
        raise DataError(f"{log.folder} leaves nothing to validate on: {why}")
    return split


def split_name(evaluation: EvaluationConfig) -> str:
    """What the split is called: leave-one-out, leave-last-20-out, global-time."""
    if evaluation.split == "leave-one-out" and evaluation.last_events > 1:
        return f"leave-last-{evaluation.last_events}-out"
    return evaluation.split


def _leave_last_out(lengths: np.ndarray, last: int) -> Split:
    held_out = lengths > 2 * last
    users = np.flatnonzero(held_out)
    ends = lengths[users]
    return Split(
        np.where(held_out, lengths - 2 * last, lengths),
        _each(users, ends - 2 * last, last),
        _each(users, ends - last, last),
    )


def _each(users: np.ndarray, start: np.ndarray, count: int) -> Cases:
    """A case for each of ``count`` events of every user, from ``start``."""
    places = (start[:, None] + np.arange(count)).ravel()
    return Cases(np.repeat(users, count), places, places + 1)


def _global_time(
    log: EventLog, lengths: np.ndarray, evaluation: EvaluationConfig
) -> tuple[Split, str]:
    """The split, and what to say if a part of it is empty."""
    test_share, valid_share = evaluation.test_share, evaluation.valid_share
    if not test_share > 0:
        raise ConfigError(
            f"evaluation.test_share is {test_share}: it must be over 0 to split by time"
        )
    if test_share + valid_share >= 1:
        raise ConfigError(
            f"evaluation.valid_share {valid_share} and test_share {test_share} leave nothing to "
            "train on: their sum must be under 1"
        )
    times = np.asarray(log.timestamps)
    test_cut, valid_cut = _cuts(times, test_share, test_share + valid_share)
    starts = np.asarray(log.offsets)[:-1]
    train_end = np.add.reduceat(times < valid_cut, starts, dtype=np.int64)
    valid_end = np.add.reduceat(times < test_cut, starts, dtype=np.int64)
    why = (
        f"the times run from {times.min()} to {times.max()}, validation starts at {valid_cut}, the "
        f"test at {test_cut}, and no user has events both before and in the period"
    )
    return Split(train_end, _period(train_end, valid_end), _period(valid_end, lengths)), why


def _cuts(times: np.ndarray, *shares: float) -> list[float]:
    """The time at which the last ``share`` of all events starts, for each share."""
    places = [len(times) - max(1, round(share * len(times))) for share in shares]
    ordered = np.partition(times, places)
    return [ordered[place].item() for place in places]


def _period(start: np.ndarray, end: np.ndarray) -> Cases:
    """A case for each user with history before and targets in the period."""
    users = np.flatnonzero((start > 0) & (end > start))
    return Cases(users, start[users], end[users])
