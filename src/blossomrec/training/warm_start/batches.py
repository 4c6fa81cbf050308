"""Batches of new events with the older ones as their context, and old events beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from blossomrec.data.batch import Batch
from blossomrec.data.batches import TrainingBatches
from blossomrec.data.log import EventLog
from blossomrec.data.windows import Windows, cut_windows, fill, positions_within
from blossomrec.errors import ConfigError, DataError

# A window has new events in at most this share of it: the rest is what came before them.
NEW_SHARE = 0.5


class NewEventBatches(TrainingBatches):
    """Windows that predict the events a run has not been trained on, and windows of old ones.

    Each new event that has one before it is a target once in an epoch, with the events before it as
    context, new or old; in these windows old events are no targets. Of the old events, windows as
    of ``TrainingBatches`` are drawn anew in each epoch, spread evenly over its batches, so that
    what was learned of them is not lost.

    Args:
        whole: the batches of all training events, which these are made like.
        log: the log that these are of.
        seen: int64 [U], how many of each user's first events have been trained on before.
        train_end: int64 [U], how many may be trained on.
        replay: share of the events of an epoch that is in windows of old events, from 0 to under 1;
            less where there are not as many.

    Raises:
        DataError: no training event is new.
        ConfigError: the batches predict something else than the next event.
    """

    def __init__(
        self,
        whole: TrainingBatches,
        log: EventLog,
        seen: np.ndarray,
        train_end: np.ndarray,
        *,
        replay: float,
    ):
        if whole._ahead != 1:
            raise ConfigError(
                "training.events is 'new', but this backbone does not predict the next event: "
                "choose training.events all"
            )
        self.whole, self.replay, self.importance = whole, replay, whole.importance
        self.max_len, self.tokens_per_batch = whole.max_len, whole.tokens_per_batch
        self.seed = whole.seed
        self._windows: tuple[int, _Windows, np.ndarray] | None = None
        starts = self._starts = np.asarray(log.offsets[:-1])
        self._ends = np.asarray(log.offsets[1:])
        # Inputs from which a new event is predicted; the first event of a history never is.
        first = np.maximum(seen, 1) - 1
        self._new = _pieces(starts + first, train_end - 1 - first)
        self._old = _pieces(starts, np.maximum(seen - 1, 0))
        if not len(self._new.starts):
            raise DataError(
                f"{log.folder} has no training event that the run was not trained on: there is "
                "nothing to bring up to date; to train on all of them, give training.events all"
            )

    @property
    def num_new(self) -> int:
        """New events that are predicted in an epoch."""
        return int(self._new.lengths.sum())

    @property
    def num_events(self) -> int:
        """Inputs in the first epoch."""
        return int(self._planned(0)[0].lengths.sum())

    @property
    def longest(self) -> int:
        return min(self.max_len, int((self._ends - self._starts).max()))

    def most_targets(self, tokens: int, histories: int) -> int:
        return self.whole.most_targets(tokens, histories)

    def _planned(self, epoch: int) -> tuple[_Windows, np.ndarray]:
        plan = self._windows
        if plan is None or plan[0] != epoch:
            seeds = np.random.SeedSequence(self.seed, spawn_key=(epoch,))
            rng = np.random.Generator(np.random.PCG64(seeds))
            new = self._new_windows(rng)
            windows = _spread(new, self._old_windows(rng, int(new.lengths.sum())))
            plan = self._windows = (epoch, windows, fill(windows.lengths, self.tokens_per_batch))
        return plan[1:]

    def _new_windows(self, rng: np.random.Generator) -> _Windows:
        longest = max(1, int(self.max_len * NEW_SHARE))
        found = cut_windows(self._new.starts, self._new.lengths, longest, rng).shuffled(rng)
        stops, users = (
            found.starts + found.lengths,
            np.searchsorted(self._ends, found.starts, "right"),
        )
        starts = np.maximum(self._starts[users], stops - self.max_len)
        return _Windows(starts, stops - starts, found.starts - starts)

    def _old_windows(self, rng: np.random.Generator, beside: int) -> _Windows:
        """As many as the replay asks for beside so many events of new ones, or all there are."""
        found = cut_windows(self._old.starts, self._old.lengths, self.max_len, rng).shuffled(rng)
        wanted = beside * self.replay / (1 - self.replay)
        # Those more than half of which are among the wanted events.
        chosen = np.cumsum(found.lengths) - found.lengths / 2 <= wanted if wanted else slice(0)
        lengths = found.lengths[chosen]
        return _Windows(found.starts[chosen], lengths, np.zeros_like(lengths))

    def _batch(self, windows: Windows, masked: np.ndarray | None) -> Batch:
        assert isinstance(windows, _Windows)
        batch, lengths = self.whole._batch(windows, masked), windows.lengths
        assert batch.targets is not None
        is_context = positions_within(lengths) < np.repeat(windows.context, lengths)
        targets = batch.targets.masked_fill(torch.from_numpy(is_context), -1)
        return replace(batch, targets=targets)


@dataclass(frozen=True)
class _Windows(Windows):
    """Windows, with how many of the first events of each have no target, int64 [W]."""

    context: np.ndarray

    def take(self, which: np.ndarray | slice) -> _Windows:
        return _Windows(self.starts[which], self.lengths[which], self.context[which])


def _pieces(starts: np.ndarray, lengths: np.ndarray) -> Windows:
    """Those that have any events."""
    some = lengths > 0
    return Windows(starts[some], lengths[some])


def _spread(some: _Windows, others: _Windows) -> _Windows:
    """Both, each in its order, such that every part of the whole has its share of each."""
    middles = [
        (np.cumsum(each.lengths) - each.lengths / 2) / max(1, each.lengths.sum())
        for each in (some, others)
    ]
    order = np.argsort(np.concatenate(middles), kind="stable")
    columns = [
        np.concatenate([getattr(each, name) for each in (some, others)])
        for name in ("starts", "lengths", "context")
    ]
    return _Windows(*columns).take(order)
