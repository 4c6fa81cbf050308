"""How sure the accuracy of a strategy beside retraining is: an interval over users."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from blossomrec.errors import RunError
from blossomrec.evaluation.metrics import ndcg
from blossomrec.evaluation.significance import LEVEL, bootstrap_means
from blossomrec.files import replacing

RANKS = "ranks.npy"
K = 10


def write_ranks(place: Path, users: np.ndarray, ranks: np.ndarray) -> None:
    """Keep users, rows of the log, and ranks of all targets of a period, int64 [N] each."""
    with replacing(place / RANKS) as temporary, temporary.open("wb") as file:
        np.save(file, np.stack([users, ranks]))


def read_ranks(place: Path) -> np.ndarray:
    """What :func:`write_ranks` wrote, int64 [2, N]; RunError where it is damaged."""
    path = place / RANKS
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path} is missing or damaged: {error}") from error
    if found.ndim != 2 or len(found) != 2 or found.dtype != np.int64:
        raise RunError(f"{path} is damaged: it holds {found.dtype} {list(found.shape)}")
    return found


def share_interval(places: Iterable[tuple[Path, Path]]) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval, over users, of NDCG@10 as a share of another's.

    A user counts with all targets that it has in the periods, as in the share itself.

    Args:
        places: of each period the folders of the two, whose targets are the same.

    Returns:
        The bounds; None where there is no target, or the other one never finds any.

    Raises:
        RunError: ranks are damaged, or are of other targets than the other's.
    """
    users, gains = list[np.ndarray](), list[np.ndarray]()
    for pair in places:
        one, other = map(read_ranks, pair)
        if not np.array_equal(one[0], other[0]):
            raise RunError(f"{pair[0] / RANKS} and {pair[1] / RANKS} are of different targets")
        users.append(one[0])
        gains.append(np.stack([_gains(each[1]) for each in (one, other)], 1))
    if not sum(map(len, users)):
        return None
    _, which = np.unique(np.concatenate(users), return_inverse=True)
    sums = np.zeros((int(which.max()) + 1, 2))
    np.add.at(sums, which, np.concatenate(gains))
    means = bootstrap_means(sums, seed=0)
    if not (means[:, 1] > 0).all():
        return None
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means[:, 0] / means[:, 1], (tail, 1 - tail))
    return float(low), float(high)


def _gains(ranks: np.ndarray) -> np.ndarray:
    """NDCG@10 of events with one target each, float64 [N]."""
    return ndcg(ranks, np.arange(len(ranks) + 1), K) if len(ranks) else np.empty(0)
