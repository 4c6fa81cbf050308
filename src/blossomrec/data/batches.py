"""Packed batches of a log: windows to train on, and histories to be encoded."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from blossomrec.data.batch import Batch, make_batch
from blossomrec.data.batching.prefetch import prefetch
from blossomrec.data.history import ITEMS_ALONE
from blossomrec.data.log import EventLog
from blossomrec.data.windows import Windows, boundaries, cut_windows, fill, gather_index
from blossomrec.errors import ConfigError, DataError

# Share of cloze windows in which the last event alone is masked: one in eleven passes over a
# history, as in BERT4Rec (Sun et al. 2019), which adds one such pass to ten random ones.
LAST_ONLY_SHARE = 1 / 11


class Division(Protocol):
    """What chooses which histories of a batch are read, such as those of one rank of several."""

    def __call__(
        self,
        lengths: np.ndarray,
        read: Callable[[np.ndarray], Batch],
        point: tuple[int, int],
    ) -> Any:
        """What is given instead of a batch.

        Args:
            lengths: of its histories, int64 [B].
            read: gives what the batch has of some histories, by their numbers, rising.
            point: epoch and step.
        """
        ...


class TrainingBatches:
    """Windows of every training history in which each event predicts the next one.

    A history of m training events has m-1 pairs of input and target; each occurs exactly once in
    an epoch. Histories longer than ``max_len`` are cut at an offset drawn per history and epoch.
    The batches of an epoch depend only on (seed, epoch) and the data.

    Attributes:
        importance: float32 [E], how much each event counts as a target; None: all the same.
    """

    # How far behind an event stands the one that is predicted there.
    _ahead: ClassVar[int] = 1

    def __init__(
        self,
        log: EventLog,
        train_end: np.ndarray,
        *,
        max_len: int,
        tokens_per_batch: int,
        seed: int,
        inputs: Sequence[str] = ITEMS_ALONE,
        importance: np.ndarray | None = None,
    ):
        """train_end: int64 [U], how many of each user's first events may be trained on.

        max_len: most inputs in a window; tokens_per_batch: most events in a batch (only a window
        that is longer by itself goes over it); inputs: what of the events a batch has; importance:
        as of ``target_importance``. Raises ConfigError, and DataError where there is nothing to
        learn from.
        """
        _check_sizes(max_len, tokens_per_batch)
        self.max_len = max_len
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self._columns = log.columns(inputs)
        offsets, train_end = np.asarray(log.offsets), np.asarray(train_end, dtype=np.int64)
        _check_ends(offsets, train_end, "train_end", lowest=0)
        used = train_end >= 2
        if not used.any():
            raise DataError(
                f"{log.folder} has no user with at least 2 training events: nothing to learn from"
            )
        self._starts = offsets[:-1][used]
        self._lengths = self._window_events(train_end[used])
        self._plan: tuple[int, Windows, np.ndarray] | None = None
        self.importance = importance
        counted = self._importance_of(Windows(self._starts, self._lengths))
        if counted is not None and not counted.any():
            warnings.warn(
                f"{log.folder} has no training event that counts as a target, by its kind and "
                "weight: nothing is learned of what comes next",
                stacklevel=2,
            )

    @property
    def num_events(self) -> int:
        """Inputs in an epoch, the same in each."""
        return int(self._lengths.sum())

    def steps(self, epoch: int) -> int:
        """Number of batches in the epoch."""
        return len(self._planned(epoch)[1]) - 1

    def sizes(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Events and histories of each batch of the epoch, both int64 [steps]."""
        windows, cuts = self._planned(epoch)
        return np.diff(boundaries(windows.lengths)[cuts]), np.diff(cuts)

    def lengths(self, epoch: int, step: int) -> np.ndarray:
        """Events of each history of a batch of the epoch, int64 [B]."""
        windows, cuts = self._planned(epoch)
        return windows.lengths[cuts[step] : cuts[step + 1]]

    @property
    def longest(self) -> int:
        """Most events that a history can have in a batch."""
        return min(self.max_len, int(self._lengths.max()))

    def most_targets(self, tokens: int, histories: int) -> int:
        """Targets that hardly a batch of so many events and histories has more of."""
        return tokens

    def epoch(
        self,
        epoch: int,
        start_step: int = 0,
        division: Division | None = None,
    ) -> Generator[Any]:
        """The batches of the epoch from ``start_step`` on, made ahead by a thread.

        Closing the iterator ends the thread.

        Args:
            division: chooses which histories of each batch are read, and makes of them what is
                given instead.
        """
        return prefetch(self._batches(epoch, start_step, division))

    def _batches(self, epoch: int, start_step: int, division: Division | None) -> Iterator[Any]:
        windows, cuts = self._planned(epoch)
        for step in range(start_step, len(cuts) - 1):
            part, point = windows.take(slice(cuts[step], cuts[step + 1])), (epoch, step)
            read = functools.partial(self._read, part, point)
            yield read() if division is None else division(part.lengths, read, point)

    def _read(
        self, windows: Windows, point: tuple[int, int], chosen: np.ndarray | None = None
    ) -> Batch:
        """The batch of windows, or what it has of the chosen ones, of which alone events are read.

        Args:
            point: epoch and step.
            chosen: numbers of windows, rising; None for all.
        """
        # Drawn for all windows, so that it does not depend on which are chosen.
        masked = self._masked(windows.lengths, point)
        if chosen is not None:
            starts, windows = boundaries(windows.lengths)[chosen], windows.take(chosen)
            if masked is not None:
                masked = masked[gather_index(starts, windows.lengths)]
        return self._batch(windows, masked)

    def _planned(self, epoch: int) -> tuple[Windows, np.ndarray]:
        """Shuffled windows of the epoch and the numbers of those with which batches start."""
        plan = self._plan
        if plan is None or plan[0] != epoch:
            rng = _generator(self.seed, epoch)
            windows = cut_windows(self._starts, self._lengths, self.max_len, rng).shuffled(rng)
            plan = self._plan = (epoch, windows, fill(windows.lengths, self.tokens_per_batch))
        return plan[1:]

    def _window_events(self, train_events: np.ndarray) -> np.ndarray:
        """How many events of each history are inputs: all but the last, which is only a target."""
        return train_events - 1

    def _masked(self, lengths: np.ndarray, point: tuple[int, int]) -> np.ndarray | None:
        """Which events of a batch's windows are masked, bool [T]; None where none ever is."""
        return None

    def _batch(self, windows: Windows, masked: np.ndarray | None) -> Batch:
        """The batch of some windows."""
        index = gather_index(windows.starts, windows.lengths)
        targets = self._columns["items"][index + self._ahead]
        counted = self._importance_of(windows)
        return make_batch(windows.lengths, _at(self._columns, index), targets, counted)

    def _importance_of(self, windows: Windows) -> np.ndarray | None:
        """How much the targets of some windows count, float32 [T]; None: all the same."""
        if self.importance is None:
            return None
        return self.importance[gather_index(windows.starts, windows.lengths) + self._ahead]


class ClozeBatches(TrainingBatches):
    """Windows in which masked events are to be predicted from both sides (BERT4Rec).

    Every training event is in exactly one window of an epoch. Each event is masked with
    ``mask_probability``, at least one in every window; in one window of eleven the last event
    alone is masked, which is what recommending asks for. A masked input is row ``num_items``. Its
    time is known, and its kind where the kind of the next event is an input; its context is not.
    """

    _ahead = 0

    def __init__(
        self,
        log: EventLog,
        train_end: np.ndarray,
        *,
        max_len: int,
        tokens_per_batch: int,
        seed: int,
        mask_probability: float,
        inputs: Sequence[str] = ITEMS_ALONE,
        importance: np.ndarray | None = None,
    ):
        """Arguments and errors as of TrainingBatches; 0 < mask_probability < 1."""
        if not 0 < mask_probability < 1:
            raise ConfigError(f"mask_probability is {mask_probability}: it must be between 0 and 1")
        sizes = {"max_len": max_len, "tokens_per_batch": tokens_per_batch}
        super().__init__(log, train_end, **sizes, seed=seed, inputs=inputs, importance=importance)
        self.mask_probability = mask_probability
        self.mask_row = log.num_items

    def most_targets(self, tokens: int, histories: int) -> int:
        share = self.mask_probability
        # Six standard deviations over the mean; a history without a masked event gets one.
        drawn = share * tokens + 6 * math.sqrt(share * (1 - share) * tokens)
        return min(tokens, math.ceil(drawn) + histories)

    def _window_events(self, train_events: np.ndarray) -> np.ndarray:
        return train_events

    def _batch(self, windows: Windows, masked: np.ndarray | None) -> Batch:
        assert masked is not None
        events = _at(self._columns, gather_index(windows.starts, windows.lengths))
        items = events["items"]
        events["items"] = np.where(masked, self.mask_row, items)
        if "kinds" in events and "asked_kinds" not in events:
            events["kinds"] = np.where(masked, 0, events["kinds"])
        if "context" in events:
            events["context"][masked] = np.nan
        counted = self._importance_of(windows)
        if counted is not None:
            counted = np.where(masked, counted, np.float32(0))
        return make_batch(windows.lengths, events, np.where(masked, items, -1), counted)

    def _masked(self, lengths: np.ndarray, point: tuple[int, int]) -> np.ndarray:
        rng, edges = _generator(self.seed, *point), boundaries(lengths)
        masked = rng.random(edges[-1]) < self.mask_probability
        last_only = rng.random(len(lengths)) < LAST_ONLY_SHARE
        masked &= ~np.repeat(last_only, lengths)
        masked[edges[1:][last_only] - 1] = True
        one = edges[:-1] + rng.integers(0, lengths)
        unmasked = np.add.reduceat(masked, edges[:-1], dtype=np.int64) == 0
        masked[one[unmasked]] = True
        return masked


class HistoryBatches:
    """The last ``max_len`` events before ``history_end`` of each case, packed, cases in order.

    Attributes:
        columns: the arrays [E] that batches are taken from.
    """

    def __init__(
        self,
        log: EventLog,
        users: np.ndarray,
        history_end: np.ndarray,
        *,
        max_len: int,
        tokens_per_batch: int,
        inputs: Sequence[str] = ITEMS_ALONE,
        columns: Mapping[str, Any] | None = None,
    ):
        """users: user rows, int64 [M]; history_end: position in the history, over 0, int64 [M];
        inputs: what of the events a batch has; columns: the arrays [E] of these, those of the log
        without them.

        Raises ConfigError for sizes, ValueError for positions outside of the history.
        """
        _check_sizes(max_len, tokens_per_batch)
        users, history_end = np.asarray(users, np.int64), np.asarray(history_end, np.int64)
        if len(users) and (users.min() < 0 or users.max() >= log.num_users):
            raise ValueError(f"users must be rows from 0 to {log.num_users - 1}")
        offsets = np.asarray(log.offsets)
        self.columns = log.columns(inputs) if columns is None else columns
        _check_ends(offsets, history_end, "history_end", lowest=1, users=users)
        self._lengths = np.minimum(history_end, max_len)
        self._starts = offsets[users] + history_end - self._lengths
        self._cuts = fill(self._lengths, tokens_per_batch)

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def __iter__(self) -> Generator[tuple[slice, Batch]]:
        """Pairs of the numbers of the cases and their batch, which has no targets."""
        return prefetch(self._batches())

    def _batches(self) -> Iterator[tuple[slice, Batch]]:
        for start, stop in zip(self._cuts[:-1].tolist(), self._cuts[1:].tolist(), strict=True):
            cases = slice(start, stop)
            lengths = self._lengths[cases]
            index = gather_index(self._starts[cases], lengths)
            yield cases, make_batch(lengths, _at(self.columns, index))


def _at(columns: Mapping[str, np.ndarray], index: np.ndarray) -> dict[str, np.ndarray]:
    """The entries of some events."""
    return {name: column[index] for name, column in columns.items()}


def _generator(seed: int, *point: int) -> np.random.Generator:
    """Random numbers that depend on the seed and the point of the training alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=point)))


def _check_sizes(max_len: int, tokens_per_batch: int) -> None:
    if max_len < 2:
        raise ConfigError(f"max_len is {max_len}: it must be at least 2")
    if tokens_per_batch < 1:
        raise ConfigError(f"tokens_per_batch is {tokens_per_batch}: it must be at least 1")


def _check_ends(
    offsets: np.ndarray,
    ends: np.ndarray,
    name: str,
    *,
    lowest: int,
    users: np.ndarray | None = None,
) -> None:
    lengths = np.diff(offsets) if users is None else np.diff(offsets)[users]
    if ends.shape != lengths.shape:
        raise ValueError(f"{name} has shape {ends.shape}: {lengths.shape} is needed")
    wrong = (ends < lowest) | (ends > lengths)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(
            f"{name}[{place}] is {ends[place]}: it must be from {lowest} to {lengths[place]}, "
            "the length of the history"
        )
