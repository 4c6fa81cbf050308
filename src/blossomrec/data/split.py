"""Which events are trained on and which are held out for validation and test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blossomrec.config import EvaluationConfig
from blossomrec.data.fields import listed
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError, shortened


@dataclass(frozen=True)
class Cases:
    """M things to predict: events ``history_end .. target_end-1`` of a user, from those before.

    users: user rows, int64 [M], never falling; history_end: position in the user's history of the
    first target, over 0, int64 [M]; target_end: position after the last target, int64 [M]; kinds:
    numbers of the kinds of events that are targets, the others in between are none; empty for all.
    """

    users: np.ndarray
    history_end: np.ndarray
    target_end: np.ndarray
    kinds: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.users)

    def sample(self, count: int, seed: int) -> Cases:
        """``count`` of the cases, in order, always the same for a seed; all if there are fewer."""
        if count >= len(self):
            return self
        chosen = np.random.default_rng(seed).choice(len(self), size=count, replace=False)
        chosen.sort()
        return self.take(chosen)

    def last_of_each_user(self) -> Cases:
        """The case of each user that has the longest history: one for a history."""
        _, starts = np.unique(self.users, return_index=True)
        return self.take(np.append(starts[1:], len(self)) - 1 if len(self) else starts)

    def take(self, chosen: np.ndarray) -> Cases:
        """Some of the cases, by their numbers or a mask."""
        return Cases(
            self.users[chosen], self.history_end[chosen], self.target_end[chosen], self.kinds
        )


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

    With ``evaluation.kinds`` only events of these kinds are targets: of each user the last one, and
    for validation the one of these kinds before it, each with all that came before it as its
    history; nothing from the first validation target on is trained on. In a period, those are the
    targets; users without one are not predicted.

    Raises DataError where there is nothing to validate or test on, ConfigError for the shares and
    for kinds that the log does not have.
    """
    lengths = np.diff(np.asarray(log.offsets))
    wanted = _wanted(log, evaluation)
    if evaluation.split == "leave-one-out":
        last = evaluation.last_events
        split = _leave_last_out(lengths, last, wanted)
        events = f"{2 * last + 1:,} events or more"
        if wanted is not None:
            events = f"{2 * last:,} events of kind {' or '.join(wanted.names)} after a first event"
        why = f"no user has {events}, as the {split_name(evaluation)} needs"
    else:
        split, why = _global_time(log, lengths, evaluation, wanted)
    if len(split.test) == 0:
        raise DataError(f"{log.folder} leaves nothing to test on: {why}")
    if len(split.valid) == 0 and (evaluation.split == "leave-one-out" or evaluation.valid_share):
        raise DataError(f"{log.folder} leaves nothing to validate on: {why}")
    return split


def resolve_filter_seen(evaluation: EvaluationConfig, log: EventLog) -> bool:
    """Whether seen items are left out of the ranking; ``auto``: when the log has no repeats."""
    if evaluation.filter_seen == "auto":
        return not log.has_repeats
    return evaluation.filter_seen == "yes"


def split_name(evaluation: EvaluationConfig) -> str:
    """What the split is called, such as ``leave-one-out``, ``leave-last-20-out`` or
    ``global-time, targets: buy``."""
    name = evaluation.split
    if name == "leave-one-out" and evaluation.last_events > 1:
        name = f"leave-last-{evaluation.last_events}-out"
    kinds = wanted_kinds(evaluation)
    return f"{name}{TARGETS}{', '.join(kinds)}" if kinds else name


# Between the name of a split and the kinds of its targets.
TARGETS = ", targets: "


def wanted_kinds(evaluation: EvaluationConfig) -> list[str]:
    """Names of the kinds of events that are targets, each once; empty for all.

    Raises:
        ConfigError: there are commas and no names.
    """
    names = listed(evaluation.kinds)
    found = list(dict.fromkeys(name for name in names if name))
    if evaluation.kinds and not found:
        raise ConfigError(f"evaluation.kinds is {shortened(evaluation.kinds)}: it names no kind")
    return found


@dataclass(frozen=True)
class _Wanted:
    """Events of the kinds that are targets; events: their rows in the log, int64, rising."""

    names: list[str]
    kinds: tuple[int, ...]
    events: np.ndarray
    offsets: np.ndarray

    def before(self, users: np.ndarray, position: np.ndarray) -> np.ndarray:
        """How many of them, of all users, stand before a position in a user's history."""
        return np.searchsorted(self.events, self.offsets[users] + position)


def _wanted(log: EventLog, evaluation: EvaluationConfig) -> _Wanted | None:
    names = wanted_kinds(evaluation)
    if not names:
        return None
    if log.kinds is None:
        raise ConfigError(
            f"evaluation.kinds is {shortened(evaluation.kinds)}: the events of {log.folder} have "
            "no kinds; prepare it with the column of kinds, --kind"
        )
    known = log.fields.kinds
    for name in names:
        if name not in known:
            raise ConfigError(
                f"evaluation.kinds names {shortened(name)}: the events of {log.folder} have the "
                f"kinds {', '.join(map(repr, known))}"
            )
    numbers = tuple(log.fields.kind(name) for name in names)
    events = np.flatnonzero(np.isin(np.asarray(log.kinds), numbers))
    return _Wanted(names, numbers, events, np.asarray(log.offsets))


def _leave_last_out(lengths: np.ndarray, last: int, wanted: _Wanted | None) -> Split:
    first = np.zeros(len(lengths), dtype=np.int64)
    counts = lengths
    if wanted is not None:
        first = np.searchsorted(wanted.events, wanted.offsets[:-1])
        counts = np.diff(first, append=len(wanted.events))
    users = np.flatnonzero(counts >= 2 * last)
    # Positions of the last targets of each user: those for validation, then those of the test.
    positions = (first + counts)[users, None] + np.arange(-2 * last, 0)
    if wanted is not None:
        positions = wanted.events[positions] - wanted.offsets[users, None]
    with_history = positions[:, 0] > 0
    users, positions = users[with_history], positions[with_history]
    train_end = lengths.copy()
    train_end[users] = positions[:, 0]
    kinds = () if wanted is None else wanted.kinds
    return Split(
        train_end,
        _each(users, positions[:, :last], kinds),
        _each(users, positions[:, last:], kinds),
    )


def _each(users: np.ndarray, positions: np.ndarray, kinds: tuple[int, ...]) -> Cases:
    """A case for each of the ``positions`` [n, count] of every user."""
    places = positions.ravel()
    return Cases(np.repeat(users, positions.shape[1]), places, places + 1, kinds)


def _global_time(
    log: EventLog, lengths: np.ndarray, evaluation: EvaluationConfig, wanted: _Wanted | None
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
    if wanted is not None:
        why += f", there of kind {' or '.join(wanted.names)}"
    valid = _period(train_end, valid_end, wanted)
    return Split(train_end, valid, _period(valid_end, lengths, wanted)), why


def _cuts(times: np.ndarray, *shares: float) -> list[float]:
    """The time at which the last ``share`` of all events starts, for each share."""
    places = [len(times) - max(1, round(share * len(times))) for share in shares]
    ordered = np.partition(times, places)
    return [ordered[place].item() for place in places]


def _period(start: np.ndarray, end: np.ndarray, wanted: _Wanted | None) -> Cases:
    """A case for each user with history before and targets in the period."""
    users = np.flatnonzero((start > 0) & (end > start))
    if wanted is None:
        return Cases(users, start[users], end[users])
    users = users[wanted.before(users, end[users]) > wanted.before(users, start[users])]
    return Cases(users, start[users], end[users], wanted.kinds)
