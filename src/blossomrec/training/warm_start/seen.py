"""What a run was trained on, kept in its folder; and which events of another log that is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from blossomrec.data.log import EventLog
from blossomrec.data.units import Seconds
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import DataError, RunError
from blossomrec.run import TRAINED_ON
from blossomrec.run.weights import read_weights, write_weights

TENSORS = "seen.safetensors"
# The last time of a user without a training event.
NEVER = np.iinfo(np.int64).min


def write_seen(run: Path, log: EventLog, train_end: np.ndarray) -> None:
    """Write how far each user's history is trained on into ``trained_on/`` of a run.

    By user: how many events; where the log has times, the time of the last one in seconds, and how
    many of those that are trained on have this time, since a split may cut between equal times.

    Args:
        train_end: how many of each user's first events are trained on, int64 [U].
    """
    found = {"events": np.asarray(train_end, np.int64)}
    if log.has_times:
        starts, seconds = np.asarray(log.offsets[:-1]), _seconds(log)
        ends = starts + train_end
        times = np.where(train_end > 0, seconds[np.maximum(ends - 1, 0)], NEVER)
        found |= {"times": times, "ties": _ties(seconds, starts, ends, times)}
    log.user_vocabulary.save(run / TRAINED_ON)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in found.items()}
    write_weights(run / TRAINED_ON / TENSORS, tensors)


def seen_events(run: Path, log: EventLog, train_end: np.ndarray) -> np.ndarray:
    """How many of each user's first events a run has been trained on, int64 [U], at most
    ``train_end``.

    Users meet by their ids. Where both logs have times, events up to the last one that the run was
    trained on have been seen; where one has an order alone, as many as the run was trained on.

    Raises:
        RunError: the run does not tell it, or what tells it is damaged.
    """
    users, known = _read(run)
    rows = users.rows_of(log.user_vocabulary)
    there, rows = rows >= 0, np.maximum(rows, 0)
    starts, lengths = np.asarray(log.offsets[:-1]), np.diff(np.asarray(log.offsets))
    seen = np.minimum(known["events"][rows], lengths)
    if log.has_times and "times" in known:
        seconds, last = _seconds(log), known["times"][rows]
        first = _first_from(seconds, starts, starts + lengths, last)
        after = _first_from(seconds, starts, starts + lengths, last + 1)
        seen = first - starts + np.minimum(after - first, known["ties"][rows])
    return np.minimum(np.where(there, seen, 0), train_end)


def _read(run: Path) -> tuple[Vocabulary, dict[str, np.ndarray]]:
    folder = run / TRAINED_ON
    if not (folder / TENSORS).is_file():
        raise RunError(
            f"{run} does not tell which events it was trained on, as models that were saved and "
            "runs of earlier versions do not: give training.events all"
        )
    try:
        users = Vocabulary.open(folder)
    except DataError as error:
        raise RunError(str(error)) from error
    known = {name: each.numpy() for name, each in read_weights(folder / TENSORS).items()}
    fits = known.keys() in ({"events"}, {"events", "times", "ties"})
    if not fits or any(
        each.shape != (users.size,) or each.dtype != np.int64 for each in known.values()
    ):
        raise RunError(f"{folder / TENSORS} is damaged: it does not belong to vocabulary.json")
    return users, known


def _seconds(log: EventLog) -> Seconds:
    return Seconds(np.asarray(log.timestamps), log.time_unit)


def _ties(seconds: Seconds, starts: np.ndarray, ends: np.ndarray, times: np.ndarray) -> np.ndarray:
    """How many events at the end of each range have the time of its last one, int64 [U]."""
    count = np.zeros(len(starts), np.int64)
    open_ones = np.flatnonzero(ends > starts)
    while len(open_ones):
        count[open_ones] += 1
        before = ends[open_ones] - 1 - count[open_ones]
        more = before >= starts[open_ones]
        open_ones, before = open_ones[more], before[more]
        open_ones = open_ones[seconds[before] == times[open_ones]]
    return count


def _first_from(
    seconds: Seconds, starts: np.ndarray, ends: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """The first event of each range at a time or after it, the end where there is none.

    All ranges are halved together; they are in order of time.
    """
    low, high = starts.copy(), ends.copy()
    while (open_ones := np.flatnonzero(low < high)).size:
        middle = (low[open_ones] + high[open_ones]) // 2
        earlier = seconds[middle] < times[open_ones]
        low[open_ones] = np.where(earlier, middle + 1, low[open_ones])
        high[open_ones] = np.where(earlier, high[open_ones], middle)
    return low
