"""Associative recall: histories in which the next event follows only from one far back.

A cue is shown once, followed by its answer. Later it is shown again, and what followed it then
follows again. Everything else is drawn at random, so nothing but the memory of that one pair helps.
Where each pair lies is kept, so that a selection of blocks can be judged against the truth.

History layout: two events make a slot, and a pair, a question or a distractor fills one. So a pair
starts at an even position, and no block of an even size cuts it in two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from blossomrec.config import LARGEST_SEED, check, option
from blossomrec.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from blossomrec.data.batch import Batch
    from blossomrec.data.split import Cases

# In the control form the answer is among this many last events when the cue comes again.
CONTROL_EVENTS = 16
# An item shown again as a distractor comes from at most this many events before or after the pair.
_SURROUNDINGS = 8
_ATTEMPTS = 200


@dataclass(frozen=True)
class RecallConfig:
    """Size and difficulty of an associative-recall task."""

    histories: int = option(256, "histories, all of one length", low=1)
    length: int = option(512, "events of a history, even", low=8)
    items: int = option(256, "items in the catalogue", low=4)
    cue_items: int = option(64, "first rows of the catalogue, which serve as cues only", low=1)
    queries: int = option(4, "cues of a history that are shown again", low=1)
    cues: int = option(8, "competing cues of a history, each shown with its answer", low=1)
    min_distance: int = option(256, "fewest events from a cue to its return, even", low=2)
    max_distance: int = option(
        256, "most events from a cue to its return; log-uniform between the two", low=2
    )
    distractors: int = option(
        1, "for each cue, how often its answer and a neighbour are shown elsewhere", low=0
    )
    noise: float = option(
        0.0, "share of returning cues that anything may follow instead", low=0, high=1
    )
    control: bool = option(False, "whether the answers lie among the last 16 events instead")
    seed: int = option(0, "seed of everything random", low=0, high=LARGEST_SEED)


@dataclass(frozen=True)
class RecallTask:
    """Histories with M queries and where the answer to each was shown.

    Attributes:
        config: what the task was made from.
        items: item rows, int64 [B, L]; raveled, they are a packed batch.
        history: int64 [M], the history of each query, rising.
        position: int64 [M], where in its history the cue is shown again, rising in a history. The
            event after it is to be predicted.
        planted: int64 [M], where the cue was shown before; its answer is the event after that.
        answers: item rows, int64 [M]. With noise, something else may follow the query.
    """

    config: RecallConfig
    items: np.ndarray
    history: np.ndarray
    position: np.ndarray
    planted: np.ndarray
    answers: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Row of each query among all raveled items, int64 [M]."""
        return self.history * self.config.length + self.position

    def planted_blocks(self, block_size: int) -> np.ndarray:
        """Number of the block, inside its history, that holds the query's pair: int64 [M].

        Raises ValueError for an odd ``block_size``, whose blocks may cut a pair in two.
        """
        if block_size < 2 or block_size % 2:
            raise ValueError(f"block_size is {block_size}: it must be even, as pairs are")
        return self.planted // block_size

    def take(self, first: int, last: int) -> RecallTask:
        """The task of the histories ``first`` .. ``last - 1``, numbered from 0."""
        kept = (self.history >= first) & (self.history < last)
        return RecallTask(
            self.config,
            self.items[first:last],
            self.history[kept] - first,
            self.position[kept],
            self.planted[kept],
            self.answers[kept],
        )

    def batch(self, *, everywhere: bool = False) -> Batch:
        """All histories as one packed batch that predicts what comes next.

        everywhere: every event but the last of a history has a target; otherwise the queries only.
        """
        import torch

        from blossomrec.data.batch import Batch

        count, length = self.items.shape
        following = np.full_like(self.items, -1)
        following[:, :-1] = self.items[:, 1:]
        following = following.ravel()
        targets = np.full_like(following, -1)
        chosen = slice(None) if everywhere else self.rows
        targets[chosen] = following[chosen]
        return Batch(
            torch.from_numpy(self.items.ravel()),
            torch.arange(0, (count + 1) * length, length, dtype=torch.int32),
            length,
            targets=torch.from_numpy(targets),
        )

    def cases(self) -> Cases:
        """The queries as cases of a log that is prepared from ``events``."""
        from blossomrec.data.split import Cases

        return Cases(self.history, self.position + 1, self.position + 2)

    def events(self) -> pl.DataFrame:
        """Events user_id, item_id and timestamp (seconds), from which a log can be prepared.

        A user is the number of a history, so its row in the log; an item is its row here, whose row
        in the log is what the log's item vocabulary says.
        """
        import polars as pl

        count, length = self.items.shape
        return pl.DataFrame(
            {
                "user_id": np.repeat(np.arange(count), length),
                "item_id": self.items.ravel(),
                "timestamp": np.tile(np.arange(length), count),
            }
        )


def make_recall_task(config: RecallConfig) -> RecallTask:
    """Draw the histories that ``config`` describes; equal configurations give equal tasks.

    One query of each history is its last event but one, so that leaving one out asks it; the others
    are wherever there is room. Raises ConfigError where the options do not fit together.
    """
    _check(config)
    rng = np.random.default_rng(config.seed)
    pairs, returns, distractors = _place(config, rng)
    items = rng.integers(config.cue_items, config.items, (config.histories, config.length))
    slots = items.reshape(config.histories, -1, 2)
    every = np.arange(config.histories)[:, None]
    cues = _distinct(config.histories, config.cue_items, config.cues, rng)
    slots[every, pairs, 0] = cues
    answers = slots[every, pairs, 1]
    slots[every[..., None], distractors, 1] = answers[..., None]
    order = np.argsort(returns, axis=1)
    planted, returns, cues, answers = (
        np.take_along_axis(each[:, : config.queries], order, axis=1)
        for each in (pairs, returns, cues, answers)
    )
    slots[every, returns, 0] = cues
    wrong = rng.random(returns.shape) < config.noise
    slots[every, returns, 1] = np.where(wrong, slots[every, returns, 1], answers)
    # Last, when all second places of slots, which never hold a cue, are what they will be.
    slots[every[..., None], distractors, 0] = _neighbours(slots, pairs, distractors.shape, rng)
    return RecallTask(
        config,
        items,
        np.repeat(np.arange(config.histories), config.queries),
        2 * returns.ravel(),
        2 * planted.ravel(),
        answers.ravel(),
    )


def _check(config: RecallConfig) -> None:
    check(config)
    for name in ("length", "min_distance", "max_distance"):
        if getattr(config, name) % 2:
            raise ConfigError(f"{name} is {getattr(config, name)}: it must be even")
    if config.cue_items > config.items - 2:
        raise ConfigError(
            f"cue_items is {config.cue_items}: it must leave at least 2 of the {config.items} items"
        )
    if not config.queries <= config.cues <= config.cue_items:
        raise ConfigError(
            f"cues is {config.cues}: it must be from queries, {config.queries}, "
            f"to cue_items, {config.cue_items}"
        )
    fits = config.min_distance <= config.max_distance <= config.length - 2
    if not (fits or config.control):
        raise ConfigError(
            f"max_distance is {config.max_distance}: it must be from min_distance, "
            f"{config.min_distance}, to length - 2, {config.length - 2}"
        )


def _place(
    config: RecallConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slots, no two alike in a history: of the pairs [B, cues], of the returns of the first of them
    [B, queries], and of distractors [B, cues, distractors]."""
    room, count = _Room(config), config.length // 2
    asked, returns = np.empty((2, config.histories, config.queries), dtype=np.int64)
    for number in range(config.queries):

        def draw(size: int, last: bool = number == 0) -> np.ndarray:
            distance = _draw_distances(config, size, rng)
            back = count - 1 if last else distance + _below(count - distance, rng)
            return np.stack((back - distance, np.broadcast_to(back, size)), axis=1)

        asked[:, number], returns[:, number] = room.take(draw).T
    others = config.cues - config.queries + config.cues * config.distractors
    lone = np.empty((config.histories, others), dtype=np.int64)
    for number in range(others):
        lone[:, number] = room.take(lambda size: rng.integers(0, count, (size, 1)))[:, 0]
    unasked, distractors = np.split(lone, [config.cues - config.queries], axis=1)
    shape = (config.histories, config.cues, config.distractors)
    return np.concatenate((asked, unasked), axis=1), returns, distractors.reshape(shape)


class _Room:
    """Which slots of all histories are still free."""

    def __init__(self, config: RecallConfig):
        self.config = config
        self.free = np.ones((config.histories, config.length // 2), dtype=bool)

    def take(self, draw: Callable[[int], np.ndarray]) -> np.ndarray:
        """Slots that ``draw(histories)`` proposes, int64 [B, k]: drawn again where one is taken."""
        waiting = np.arange(len(self.free))
        taken = None
        for _ in range(_ATTEMPTS):
            proposed = draw(len(waiting))
            taken = np.zeros((len(self.free), proposed.shape[1]), int) if taken is None else taken
            fits = np.take_along_axis(self.free[waiting], proposed, axis=1).all(1)
            taken[waiting[fits]] = proposed[fits]
            self.free[waiting[fits, None], proposed[fits]] = False
            waiting = waiting[~fits]
            if not len(waiting):
                return taken
        raise ConfigError(
            f"length is {self.config.length}: too short for {self.config.cues} cues, "
            f"{self.config.queries} queries and {self.config.distractors} distractors for each cue"
        )


def _draw_distances(config: RecallConfig, size: int, rng: np.random.Generator) -> np.ndarray:
    """Distances between a cue and its return, in slots: int64 [size]."""
    if config.control:
        return rng.integers(1, min(CONTROL_EVENTS, config.length - 2) // 2 + 1, size)
    low, high = config.min_distance // 2, config.max_distance // 2
    drawn = low * ((high + 1) / low) ** rng.random(size)
    return np.minimum(drawn.astype(np.int64), high)


def _below(bounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A whole number under each bound."""
    return (rng.random(len(bounds)) * bounds).astype(np.int64)


def _distinct(count: int, size: int, taken: int, rng: np.random.Generator) -> np.ndarray:
    """For each of ``count`` histories, ``taken`` different numbers under ``size``."""
    if taken**2 > size:
        drawn = rng.random((count, size), dtype=np.float32)
        return np.argpartition(drawn, taken - 1, axis=1)[:, :taken]
    # Few of many are rarely alike: they are drawn again where they are.
    drawn = rng.integers(0, size, (count, taken))
    while len(alike := np.flatnonzero((np.diff(np.sort(drawn, axis=1)) == 0).any(axis=1))):
        drawn[alike] = rng.integers(0, size, (len(alike), taken))
    return drawn


def _neighbours(
    slots: np.ndarray, pairs: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Items from around each pair, none of them a cue, of ``shape`` [B, cues, distractors]."""
    near = rng.integers(1, _SURROUNDINGS // 2 + 1, shape) * rng.choice((-1, 1), shape)
    near = np.clip(pairs[..., None] + near, 0, slots.shape[1] - 1)
    return slots[np.arange(len(slots))[:, None, None], near, 1]
