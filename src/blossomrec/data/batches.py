"""Packed batches: histories of a token budget one after another, without padding."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blossomrec.data.log import EventLog
from blossomrec.data.prefetch import prefetch
from blossomrec.data.windows import Windows, boundaries, cut_windows, fill, gather_index
from blossomrec.errors import ConfigError, DataError

# Share of cloze windows in which the last event alone is masked: one in eleven passes over a
# history, as in BERT4Rec (Sun et al. 2019), which adds one such pass to ten random ones.
LAST_ONLY_SHARE = 1 / 11


@dataclass(frozen=True)
class Batch:
    """T events of B histories, packed.

    items: item rows, int64 [T]; targets: the item row to predict at each event, -1 where there is
    none, int64 [T]; cu_seqlens: where each history starts and the last one ends, int32 [B+1];
    max_length: events of the longest history.
    """

    items: Tensor
    targets: Tensor
    cu_seqlens: Tensor
    max_length: int

    @property
    def num_histories(self) -> int:
        return len(self.cu_seqlens) - 1

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        return Batch(
            self.items.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.cu_seqlens.to(device, non_blocking=True),
            self.max_length,
        )


def pack(histories: Sequence[np.ndarray]) -> Batch:
    """A batch, without targets, of histories given as arrays of item rows, oldest event first.

    Raises DataError when there is no history or one of them is empty.
    """
    lengths = np.asarray([len(history) for history in histories], dtype=np.int64)
    if len(lengths) == 0:
        raise DataError("there is no history to pack")
    if not lengths.all():
        raise DataError(f"history {int(np.argmin(lengths))} (counted from 0) has no events")
    items = np.concatenate([np.asarray(history, dtype=np.int64) for history in histories])
    return _make_batch(items, None, lengths)


class TrainingBatches:
    """Windows of every training history in which each event predicts the next one.

    A history of m training events has m-1 pairs of input and target; each occurs exactly once in
    an epoch. Histories longer than ``max_len`` are cut at an offset drawn per history and epoch.
    The batches of an epoch depend only on (seed, epoch) and the data.
    """

    def __init__(
        self,
        log: EventLog,
        train_end: np.ndarray,
        *,
        max_len: int,
        tokens_per_batch: int,
        seed: int,
    ):
        """train_end: int64 [U], how many of each user's first events may be trained on.

        max_len: most inputs in a window; tokens_per_batch: most events in a batch (only a window
        that is longer by itself goes over it). Raises ConfigError and DataError.
        """
        _check_sizes(max_len, tokens_per_batch)
        self.max_len = max_len
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self._items = np.asarray(log.items)
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

    @property
    def longest(self) -> int:
        """Most events that a history can have in a batch."""
        return min(self.max_len, int(self._lengths.max()))

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch]:
        """The batches of the epoch from ``start_step`` on, made ahead by a thread.

        Closing the iterator ends the thread.
        """
        return prefetch(self._batches(epoch, start_step))

    def _batches(self, epoch: int, start_step: int) -> Iterator[Batch]:
        windows, cuts = self._planned(epoch)
        for step in range(start_step, len(cuts) - 1):
            part = slice(cuts[step], cuts[step + 1])
            yield self._batch(windows.starts[part], windows.lengths[part], epoch, step)

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

    def _batch(self, starts: np.ndarray, lengths: np.ndarray, epoch: int, step: int) -> Batch:
        index = gather_index(starts, lengths)
        return _make_batch(self._items[index], self._items[index + 1], lengths)


class ClozeBatches(TrainingBatches):
    """Windows in which masked events are to be predicted from both sides (BERT4Rec).

    Every training event is in exactly one window of an epoch. Each event is masked with
    ``mask_probability``, at least one in every window; in one window of eleven the last event
    alone is masked, which is what recommending asks for. A masked input is row ``num_items``.
    """

    def __init__(
        self,
        log: EventLog,
        train_end: np.ndarray,
        *,
        max_len: int,
        tokens_per_batch: int,
        seed: int,
        mask_probability: float,
    ):
        """Arguments and errors as of TrainingBatches; 0 < mask_probability < 1."""
        if not 0 < mask_probability < 1:
            raise ConfigError(f"mask_probability is {mask_probability}: it must be between 0 and 1")
        super().__init__(
            log, train_end, max_len=max_len, tokens_per_batch=tokens_per_batch, seed=seed
        )
        self.mask_probability = mask_probability
        self.mask_row = log.num_items

    def _window_events(self, train_events: np.ndarray) -> np.ndarray:
        return train_events

    def _batch(self, starts: np.ndarray, lengths: np.ndarray, epoch: int, step: int) -> Batch:
        items = self._items[gather_index(starts, lengths)]
        masked = self._mask(lengths, _generator(self.seed, epoch, step))
        return _make_batch(
            np.where(masked, self.mask_row, items), np.where(masked, items, -1), lengths
        )

    def _mask(self, lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Which of the packed events are masked: bool [T]."""
        edges = boundaries(lengths)
        masked = rng.random(edges[-1]) < self.mask_probability
        last_only = rng.random(len(lengths)) < LAST_ONLY_SHARE
        masked &= ~np.repeat(last_only, lengths)
        masked[edges[1:][last_only] - 1] = True
        one = edges[:-1] + rng.integers(0, lengths)
        unmasked = np.add.reduceat(masked, edges[:-1], dtype=np.int64) == 0
        masked[one[unmasked]] = True
        return masked


class HistoryBatches:
    """The last ``max_len`` events before ``history_end`` of each case, packed, cases in order."""

    def __init__(
        self,
        log: EventLog,
        users: np.ndarray,
        history_end: np.ndarray,
        *,
        max_len: int,
        tokens_per_batch: int,
    ):
        """users: user rows, int64 [M]; history_end: position in the history, over 0, int64 [M].

        Raises ConfigError for sizes, ValueError for positions outside of the history.
        """
        _check_sizes(max_len, tokens_per_batch)
        users, history_end = np.asarray(users, np.int64), np.asarray(history_end, np.int64)
        if len(users) and (users.min() < 0 or users.max() >= log.num_users):
            raise ValueError(f"users must be rows from 0 to {log.num_users - 1}")
        offsets = np.asarray(log.offsets)
        self._items = np.asarray(log.items)
        _check_ends(offsets, history_end, "history_end", lowest=1, users=users)
        self._lengths = np.minimum(history_end, max_len)
        self._starts = offsets[users] + history_end - self._lengths
        self._cuts = fill(self._lengths, tokens_per_batch)

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def __iter__(self) -> Generator[tuple[slice, Batch]]:
        """Pairs of the numbers of the cases and their batch, whose targets are all -1."""
        return prefetch(self._batches())

    def _batches(self) -> Iterator[tuple[slice, Batch]]:
        for start, stop in zip(self._cuts[:-1].tolist(), self._cuts[1:].tolist(), strict=True):
            cases = slice(start, stop)
            lengths = self._lengths[cases]
            items = self._items[gather_index(self._starts[cases], lengths)]
            yield cases, _make_batch(items, None, lengths)


def _make_batch(items: np.ndarray, targets: np.ndarray | None, lengths: np.ndarray) -> Batch:
    if targets is None:
        targets = np.full(len(items), -1, dtype=np.int64)
    return Batch(
        torch.from_numpy(items.astype(np.int64, copy=False)),
        torch.from_numpy(targets.astype(np.int64, copy=False)),
        torch.from_numpy(boundaries(lengths).astype(np.int32)),
        int(lengths.max()),
    )


def _generator(seed: int, *place: int) -> np.random.Generator:
    """Random numbers that depend on the seed and the place in the training alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=place)))


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
