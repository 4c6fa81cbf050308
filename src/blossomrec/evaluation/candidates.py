"""Which items stand in a ranking: targets, items already seen, and sampled unseen ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from blossomrec.data.windows import each_once, fill, gather_index
from blossomrec.errors import DataError
from blossomrec.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog
    from blossomrec.data.split import Cases

# Events read at a time; bounds memory where histories are very long.
PIECE_EVENTS = 1 << 21
UNSEEN_SAMPLED = 100


@dataclass(frozen=True)
class Targets:
    """The distinct target items of every case, side by side, in order of row within a case.

    An item may be a target by several events, of several kinds: ``kinds`` and ``of_kinds`` are the
    distinct pairs of a target and a kind, in order of target; None where events have no kinds.
    """

    offsets: np.ndarray  # int64 [M+1]
    items: np.ndarray  # int64 [N]
    first: np.ndarray  # int64 [M], row in the log of the first target event of each case
    kinds: np.ndarray | None = None  # int32 [P], numbers of kinds
    of_kinds: np.ndarray | None = None  # int64 [P], which of the targets

    @property
    def counts(self) -> np.ndarray:
        return np.diff(self.offsets)


def targets_of(log: EventLog, cases: Cases) -> Targets:
    """The items of the events history_end ... target_end of every case, of its kinds alone.

    Raises DataError where there is no case, or one without a history or a target.
    """
    lengths = cases.target_end - cases.history_end
    if len(lengths) == 0:
        raise DataError("there is no case to evaluate: no user has both a history and a target")
    if lengths.min() < 1 or cases.history_end.min() < 1:
        worst = int(np.argmin(np.minimum(lengths, cases.history_end)))
        raise DataError(
            f"case {worst} (user row {cases.users[worst]}) predicts events "
            f"{cases.history_end[worst]} to {cases.target_end[worst]}: "
            "a case needs an event before and a target"
        )
    rows, positions = _ragged(log.offsets[cases.users] + cases.history_end, lengths)
    if cases.kinds and log.kinds is not None:
        wanted = np.isin(log.kinds[positions], cases.kinds)
        rows, positions = rows[wanted], positions[wanted]
    first = np.searchsorted(rows, np.arange(len(lengths) + 1))
    if (np.diff(first) == 0).any():
        user = cases.users[np.argmin(np.diff(first))]
        raise DataError(f"the case of user row {user} has no event of the kinds that are targets")
    found = rows * log.num_items + log.items[positions]
    keys = each_once(found)
    offsets = np.searchsorted(keys, np.arange(len(lengths) + 1) * log.num_items)
    pairs = (None, None)
    if log.kinds is not None:
        numbers = len(log.fields.kinds) + 1
        distinct = each_once(np.searchsorted(keys, found) * numbers + log.kinds[positions])
        pairs = ((distinct % numbers).astype(np.int32), distinct // numbers)
    return Targets(offsets, keys % log.num_items, positions[first[:-1]], *pairs)


def seen_pieces(
    log: EventLog, users: np.ndarray, ends: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row, item) pairs of the first ``ends`` events of each user, rows counted from 0.

    Pairs come in pieces of about ``PIECE_EVENTS`` and repeat where a history repeats an item.
    """
    cuts = fill(ends, PIECE_EVENTS).tolist()
    for begin, stop in pairwise(cuts):
        rows, positions = _ragged(log.offsets[users[begin:stop]], ends[begin:stop])
        yield rows + begin, log.items[positions].astype(np.int64)


def before_cases(log: EventLog, cases: Cases) -> np.ndarray:
    """How many of each user's first events stand before the first case, int64 [U]; all of them
    where there is none."""
    ends = np.diff(np.asarray(log.offsets))
    users, first = np.unique(cases.users, return_index=True)
    # Cases of a user stand side by side.
    ends[users] = np.minimum.reduceat(cases.history_end, first)
    return ends


def popularity_percentiles(log: EventLog, ends: np.ndarray, ranks: Ranks = ALONE) -> np.ndarray:
    """Place of every item in the order of popularity, float64 [I]: 0 least, 1 most popular.

    The share of the other items that have fewer events, those with as many counting half, so that
    items recommended at random have 0.5 on average. Ranks count a part of the events each.

    Args:
        ends: how many of each user's first events count, int64 [U].
    """
    counts, own = np.zeros(log.num_items, dtype=np.int64), ranks.rows(log.num_events)
    for start in range(own.start, own.stop, PIECE_EVENTS):
        piece = log.items[start : min(start + PIECE_EVENTS, own.stop)]
        counts += np.bincount(piece, minlength=log.num_items)
    part = ranks.rows(log.num_users)
    starts = np.asarray(log.offsets)[part.start : part.stop] + ends[part.start : part.stop]
    others = np.asarray(log.offsets)[part.start + 1 : part.stop + 1] - starts
    for begin, stop in pairwise(fill(others, PIECE_EVENTS).tolist()):
        _, left_out = _ragged(starts[begin:stop], others[begin:stop])
        counts -= np.bincount(log.items[left_out], minlength=log.num_items)
    counts = ranks.sum_(torch.from_numpy(counts)).numpy()
    _, place, ties = np.unique(counts, return_inverse=True, return_counts=True)
    fewer = np.cumsum(ties) - ties
    return (fewer[place] + (ties[place] - 1) / 2) / max(1, log.num_items - 1)


def sample_unseen(log: EventLog, users: np.ndarray, seed: int) -> np.ndarray:
    """100 items that each user never met, uniform without replacement, int64 [n, 100].

    Nothing of the user's history is drawn, whatever its time. The draw is a function of ``seed``
    and the user row alone. A user with fewer unseen items gets all of them, then -1.
    """
    ends = np.asarray(log.offsets[users + 1] - log.offsets[users])
    sampled = np.full((len(users), UNSEEN_SAMPLED), -1, dtype=np.int64)
    cuts = fill(ends + 4 * UNSEEN_SAMPLED, PIECE_EVENTS).tolist()
    for begin, stop in pairwise(cuts):
        _sample_piece(log, users[begin:stop], ends[begin:stop], seed, sampled[begin:stop])
    return sampled


def _sample_piece(
    log: EventLog, users: np.ndarray, ends: np.ndarray, seed: int, sampled: np.ndarray
) -> None:
    count, catalogue = sampled.shape[1], log.num_items
    rows, positions = _ragged(log.offsets[users], ends)
    seen = each_once(rows * catalogue + log.items[positions])  # keys (row, item), sorted
    unseen = catalogue - np.bincount(seen // catalogue, minlength=len(users))
    for row in np.flatnonzero(unseen <= count):
        first, last = np.searchsorted(seen, (row * catalogue, (row + 1) * catalogue))
        left = np.setdiff1d(np.arange(catalogue), seen[first:last] % catalogue)
        sampled[row, : len(left)] = left
    open_rows, draws = np.flatnonzero(unseen > count), 2 * count
    while len(open_rows):
        # A longer draw begins with the shorter one: what is accepted never changes.
        items = _uniform_items(seed, users[open_rows], draws, catalogue)
        accepted = _first_time(items) & ~_contains(seen, open_rows[:, None] * catalogue + items)
        full = accepted.sum(1) >= count
        accepted &= np.cumsum(accepted, axis=1) <= count
        sampled[open_rows[full]] = items[full][accepted[full]].reshape(-1, count)
        open_rows, draws = open_rows[~full], 2 * draws


def _uniform_items(seed: int, users: np.ndarray, draws: int, catalogue: int) -> np.ndarray:
    """Draws [n, draws] from 0 ... catalogue-1, each a hash of (seed, user, number of the draw)."""
    with np.errstate(over="ignore"):
        state = _mix(_mix(np.uint64(seed) + _GOLDEN) ^ _mix(users.astype(np.uint64) + _GOLDEN))
        steps = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
        high = _mix(state[:, None] + steps) >> np.uint64(32)
    return ((high * np.uint64(catalogue)) >> np.uint64(32)).astype(np.int64)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: Any) -> Any:
    """SplitMix64 (Steele, Lea and Flood, 2014): a well mixed uint64 for every uint64."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _first_time(items: np.ndarray) -> np.ndarray:
    """True where a value stands for the first time in its row."""
    order = np.argsort(items, axis=1, kind="stable")
    ordered = np.take_along_axis(items, order, axis=1)
    fresh = np.ones(items.shape, dtype=bool)
    fresh[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty_like(fresh)
    np.put_along_axis(first, order, fresh, axis=1)
    return first


def _contains(ordered: np.ndarray, keys: np.ndarray) -> np.ndarray:
    found = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return ordered[found] == keys


def _ragged(starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row number and position of every element of the ranges start ... start + length."""
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, gather_index(np.asarray(starts), np.asarray(lengths))
