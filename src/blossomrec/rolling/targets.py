"""The events of a period that are predicted, and where models rank them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blossomrec.data.log import EventLog
from blossomrec.data.split import Cases, resolve_filter_seen
from blossomrec.data.windows import boundaries, each_once, gather_index
from blossomrec.evaluation import RankingOptions, evaluate
from blossomrec.files import TemporaryFolder
from blossomrec.measure import load_seeing
from blossomrec.rolling.past_log import Part, ends_before, write_part
from blossomrec.rolling.periods import Period
from blossomrec.rolling.study import Opened
from blossomrec.run.description import read_run_config
from blossomrec.run.tables import open_vocabulary

# The rank of a target that the model does not know.
MISS = np.int64(1) << 40


@dataclass(frozen=True)
class Targets:
    """N events of a period, by user, then time; each has an event of its user before it.

    Attributes:
        users: rows in the log, int64 [N].
        positions: in the user's history, over 0, int64 [N].
        items: rows in the log, int64 [N].
        stop: events of each user before the end of the period, int64 [U].
        without_history: events of the period that are the first of their users.
    """

    users: np.ndarray
    positions: np.ndarray
    items: np.ndarray
    stop: np.ndarray
    without_history: int

    def __len__(self) -> int:
        return len(self.users)


def targets_of(log: EventLog, period: Period, *, first: bool) -> Targets:
    """The events of a period; with ``first`` the first one of each user alone."""
    start, stop = ends_before(log, period.start), ends_before(log, period.stop)
    begins = np.maximum(start, 1)
    counts = np.maximum(stop - begins, 0)
    new = int(np.count_nonzero((start == 0) & (stop > 0)))
    if first:
        counts = np.minimum(counts, 1)
    users = np.repeat(np.arange(log.num_users), counts)
    positions = gather_index(begins, counts)
    items = log.items[np.asarray(log.offsets)[users] + positions].astype(np.int64)
    return Targets(users, positions, items, stop, new)


def rank_targets(opened: Opened, targets: Targets, run: Path, device: str) -> np.ndarray:
    """The rank of each target among the items of a run, int64 [N], 0 the first; or ``MISS``.

    The model is shown all that came before a target in the user's history, also in the same period,
    as far as it knows the items. Items that it does not know have no score: they stand in front
    of none, and as targets they are misses, as is a target before which it knows nothing.
    """
    info = read_run_config(run)
    # Ids are rows of the log.
    known = np.asarray(open_vocabulary(run, info).listed())
    positions, there = _known_positions(opened.log, targets, known)
    ranks = np.full(len(targets), MISS)
    if not there.any():
        return ranks
    ends = np.zeros_like(targets.stop)
    users = each_once(targets.users[there])
    ends[users] = targets.stop[users]
    temporary = TemporaryFolder()
    log = write_part(opened.log, temporary.path / "log", Part(ends, known), tables=False)
    rows = np.searchsorted(np.asarray(log.user_vocabulary.listed()), targets.users[there])
    cases = Cases(rows, positions[there], positions[there] + 1)
    model, columns = load_seeing(run, info, log, device)
    config = opened.study.config.evaluation
    options = RankingOptions(
        filter_seen=resolve_filter_seen(config, log),
        ks=config.ks,
        seed=config.seed,
        popularity=False,
    )
    ranks[there] = evaluate(model, log, cases, options, columns=columns, device=device).ranks
    return ranks


def _known_positions(
    log: EventLog, targets: Targets, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many events of known items are before each target, int64 [N], and whether it can be
    ranked: it is one of them, and there is one before it."""
    is_known = np.zeros(log.num_items, bool)
    is_known[known] = True
    users, which = np.unique(targets.users, return_inverse=True)
    starts, lengths = np.asarray(log.offsets)[users], targets.stop[users]
    before = boundaries(is_known[log.items[gather_index(starts, lengths)]])
    edges = boundaries(lengths)[:-1][which]
    positions = before[edges + targets.positions] - before[edges]
    return positions, is_known[targets.items] & (positions > 0)
