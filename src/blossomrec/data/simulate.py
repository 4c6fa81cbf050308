"""Simulated events with what makes real histories worth reading: sessions, interests, fashions.

Items belong to interests (clusters), where each has a place and a taste. A user takes up a few
interests one after another, has a taste of his own in each, mostly kept to, and walks from place to
place. Later he comes back to interests left long ago, with the same taste and where he stopped. So
the next item follows roughly from the last one, better from the whole session, and best from the
earlier sessions of the same interest, which may lie hundreds of events back.

``simulate_purchases`` puts purchases among these events, which then are clicks: rare, and told by
nothing but earlier purchases of the user.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from blossomrec.config import check, option
from blossomrec.data.windows import boundaries, positions_within
from blossomrec.errors import ConfigError, whole_number

_START = 1_672_531_200  # 2023-01-01
_SPAN = 2 * 365 * 86_400
_SECONDS_BETWEEN_EVENTS = 90.0
_SECONDS_BETWEEN_SESSIONS = 3_600.0
_LARGEST_SWITCH_SHARE = 0.3
_LENGTH_SIGMA = 1.0
_TASTE_KEPT = 0.7
_LONGEST_STEP = 3
_FASHION_PERIODS = 24
_FASHION_ITEMS = 20
# What a user met before gives way to the next places, now and then to the next taste.
_NEXT_PLACES = 8
_NEARBY_ATTEMPTS = 80
_DRAWS_OF_INTERESTS = 20


@dataclass(frozen=True)
class SimulationConfig:
    """Size and character of simulated events."""

    users: int = option(2_000, "users", low=2)
    items: int = option(2_000, "items in the catalogue; some may get no event", low=4)
    events_per_user: float = option(100.0, "mean events of a user; lengths are log-normal", low=1)
    min_events: int = option(5, "fewest events of a user", low=1)
    max_events: int = option(2_000, "most events of a user; half the items without repeats", low=1)
    interests: int = option(16, "clusters of items", low=1)
    interests_per_user: int = option(5, "interests that a user takes up one after another", low=1)
    tastes: int = option(8, "kinds of items in an interest, of which a user prefers one", low=1)
    session_length: float = option(5.0, "mean events of a session, all of one interest", low=1)
    fashion_share: float = option(0.08, "share of events on items in fashion", low=0, high=1)
    return_share: float = option(0.4, "share of sessions on an interest left before", low=0, high=1)
    noise: float = option(0.05, "share of events on any item, by popularity", low=0, high=1)
    repeats: bool = option(False, "whether a user meets an item more than once")
    seed: int = option(0, "seed of everything random", low=0)


def simulate(config: SimulationConfig) -> pl.DataFrame:
    """Events user_id, item_id (scattered integers) and timestamp (seconds), in order of time.

    Raises ConfigError where the options do not fit together.
    """
    _check(config)
    rng = np.random.default_rng(config.seed)
    users, items, times = _draw_events(config, rng)
    return _frame(config, users, items, times, rng).sort("timestamp", maintain_order=True)


def simulate_folder(config: SimulationConfig, folder: Path, users_at_once: int = 20_000) -> int:
    """Events as of :func:`simulate`, written to Parquet files of so many users each.

    Memory is that of a file, of the ids and of the fashions. The items, and which of them are in
    fashion when, are the same in all files. Each file is in order of time.

    Args:
        config: of all users together.
        folder: a new one, or one without files of these names: ``part-00000.parquet``, ...
        users_at_once: of a file; the last one may have fewer, or one more.

    Returns:
        How many events there are.

    Raises:
        ConfigError: the options do not fit together.
    """
    _check(config)
    whole_number("users_at_once", users_at_once, low=2)
    rng = np.random.default_rng(config.seed)
    ids, fashions = _scattered_ids(config.items, rng), _draw_fashions(config, rng)
    # The last file takes a single user that is left over.
    parts = max(1, -(-(config.users - 1) // users_at_once))
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    for part in range(parts):
        count = users_at_once if part < parts - 1 else config.users - part * users_at_once
        rng = np.random.default_rng([config.seed, part])
        one = replace(config, users=count)
        users, items, times = _draw_events(one, rng, fashions)
        # Of every file they are spread over the same range, and in no other file.
        user_ids = _scattered_ids(count, rng) * parts + part
        frame = pl.DataFrame(
            {"user_id": user_ids[users], "item_id": ids[items], "timestamp": times}
        )
        frame.sort("timestamp", maintain_order=True).write_parquet(
            folder / f"part-{part:05}.parquet"
        )
        total += len(users)
    return total


def _draw_events(
    config: SimulationConfig, rng: np.random.Generator, fashions: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of user and item and the time of every event, by user, then time.

    fashions: as of ``_draw_fashions``, drawn here without them.
    """
    lengths = _history_lengths(config, rng)
    users = np.repeat(np.arange(config.users, dtype=np.int32), lengths)
    sessions = _draw_sessions(config, lengths, rng)
    times = _draw_times(lengths, sessions.first, rng)
    elsewhere = rng.random(len(users))
    walking = elsewhere >= config.fashion_share + config.noise
    items = np.empty(len(users), dtype=np.int64)
    items[walking] = _walk(config, users[walking], sessions.take(walking), rng)
    _place_elsewhere(config, items, times, elsewhere, rng, fashions)
    if not config.repeats:
        _replace_repeats(config, users, items, rng)
    return users, items, times


def _frame(
    config: SimulationConfig,
    users: np.ndarray,
    items: np.ndarray,
    times: np.ndarray,
    rng: np.random.Generator,
) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_id": _scattered_ids(config.users, rng)[users],
            "item_id": _scattered_ids(config.items, rng)[items],
            "timestamp": times,
        }
    )


@dataclass(frozen=True)
class PurchaseConfig:
    """Purchases among simulated events."""

    share: float = option(0.1, "share of events that are purchases", low=0.001, high=0.999)
    goods: int = option(400, "items that are bought; they are clicked like all others", low=2)
    needs: int = option(8, "long-term interests of buyers, each with as many of the goods", low=1)
    noise: float = option(0.2, "share of purchases of any of the goods", low=0, high=1)


def simulate_purchases(
    config: SimulationConfig, purchases: PurchaseConfig | None = None
) -> pl.DataFrame:
    """The events of :func:`simulate` as clicks, some of them replaced by purchases.

    A user has one need for all his life, a ring of goods, and buys them one after another from a
    place of his own on: each purchase follows from the one before it, many clicks ago, but for
    those that are noise, after which he goes on where he was. Clicks tell nothing of purchases, nor
    these of clicks: what learns from all events alike predicts clicks.

    Args:
        config: of the events; without ``repeats`` a user may still buy what he clicked.
        purchases: their number and character, the defaults for None.

    Returns:
        What :func:`simulate` returns and the columns ``kind``, "click" or "buy", and
        ``predictable``, true for purchases that follow from earlier ones of the user: their share
        is what the best of all models finds at the first place, and chance adds little to it.

    Raises:
        ConfigError: the options do not fit together.

    Example:
        >>> events = simulate_purchases(SimulationConfig(users=200), PurchaseConfig(share=0.2))
        >>> share = events.filter(kind="buy")["predictable"].mean()
    """
    purchases = purchases or PurchaseConfig()
    _check(config)
    _check_purchases(config, purchases)
    rng = np.random.default_rng(config.seed)
    users, items, times = _draw_events(config, rng)
    bought = rng.random(len(users)) < purchases.share
    predictable = np.zeros(len(users), dtype=bool)
    items[bought], predictable[bought] = _buy(config, purchases, users[bought], rng)
    kinds = pl.Series("kind", np.where(bought, "buy", "click"))
    events = _frame(config, users, items, times, rng)
    return events.with_columns(kinds, pl.Series("predictable", predictable)).sort(
        "timestamp", maintain_order=True
    )


def _check_purchases(config: SimulationConfig, purchases: PurchaseConfig) -> None:
    check(purchases)
    if not 2 * purchases.needs <= purchases.goods <= config.items:
        raise ConfigError(
            f"goods is {purchases.goods}: it must be from 2 * needs, {2 * purchases.needs}, to "
            f"items, {config.items}"
        )


def _buy(
    config: SimulationConfig, purchases: PurchaseConfig, users: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Item of each purchase, int64, and whether earlier ones of its user tell it, bool.

    users: of the purchases, in order of user and time.
    """
    size = purchases.goods // purchases.needs
    goods = rng.choice(config.items, (purchases.needs, size), replace=False)
    need = rng.integers(0, purchases.needs, config.users)[users]
    start = rng.integers(0, size, config.users)[users]
    noise = rng.random(len(users)) < purchases.noise
    counts = np.bincount(users, minlength=config.users)
    # How many purchases of the user, and how many of them as noise, there were before.
    before = positions_within(counts)
    noisy = boundaries(noise)
    bought = before - (noisy[:-1] - np.repeat(noisy[boundaries(counts)[:-1]], counts))
    items = goods[need, (start + bought) % size]
    items[noise] = rng.choice(goods.ravel(), np.count_nonzero(noise))
    return items, ~noise & (bought > 0)


@dataclass(frozen=True)
class _Sessions:
    """For each event: whether its session starts with it, the interest of the session as number
    among the user's own, and whether the session returns to an interest left before."""

    first: np.ndarray
    slot: np.ndarray
    returning: np.ndarray

    def take(self, index: np.ndarray) -> _Sessions:
        return _Sessions(self.first[index], self.slot[index], self.returning[index])


def _check(config: SimulationConfig) -> None:
    check(config)
    limit = _most_events(config)
    if not config.min_events <= config.events_per_user <= limit:
        raise ConfigError(
            f"events_per_user is {config.events_per_user}: it must be from min_events, "
            f"{config.min_events}, to the most events of a user, {limit}"
        )
    if config.interests_per_user > config.interests:
        raise ConfigError(
            f"interests_per_user is {config.interests_per_user}: there are only "
            f"{config.interests} interests"
        )
    if config.interests * config.tastes > config.items:
        raise ConfigError(
            f"interests is {config.interests} and tastes {config.tastes}: their product must be at "
            f"most items, {config.items}"
        )
    if config.fashion_share + config.noise > 1:
        raise ConfigError(
            f"fashion_share {config.fashion_share} and noise {config.noise} exceed 1 together"
        )


def _most_events(config: SimulationConfig) -> int:
    return config.max_events if config.repeats else min(config.max_events, config.items // 2)


def _history_lengths(config: SimulationConfig, rng: np.random.Generator) -> np.ndarray:
    """Log-normal numbers of events, within bounds, with the mean that is asked for."""
    shape = np.exp(_LENGTH_SIGMA * rng.standard_normal(config.users))
    low, high = 0.0, 10.0 * _most_events(config) / shape.min()
    for _ in range(60):
        scale = (low + high) / 2
        lengths = np.clip(np.rint(scale * shape), config.min_events, _most_events(config))
        low, high = (scale, high) if lengths.mean() < config.events_per_user else (low, scale)
    return lengths.astype(np.int64)


def _draw_sessions(
    config: SimulationConfig, lengths: np.ndarray, rng: np.random.Generator
) -> _Sessions:
    edges = boundaries(lengths)
    first = rng.random(edges[-1]) < 1 / config.session_length
    first[edges[:-1]] = True
    per_user = np.add.reduceat(first, edges[:-1], dtype=np.int64)
    starts = boundaries(per_user)[:-1]
    # A user moves on to the next interest so rarely that the last one comes up near the end.
    share = (config.interests_per_user - 1) / np.maximum(per_user, config.interests_per_user)
    share = np.repeat(np.minimum(share, _LARGEST_SWITCH_SHARE), per_user)
    moves = rng.random(len(share)) < share
    moves[starts] = False
    moved = np.cumsum(moves)
    current = np.minimum(moved - np.repeat(moved[starts], per_user), config.interests_per_user - 1)
    returning = (rng.random(len(current)) < config.return_share) & (current > 0)
    earlier = (rng.random(len(current)) * current).astype(np.int64)
    slot = np.where(returning, earlier, current).astype(np.int32)
    number = np.cumsum(first) - 1
    return _Sessions(first, slot[number], returning[number])


def _draw_times(lengths: np.ndarray, first: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Seconds since 1970, rising in a history: short gaps in a session, long ones between."""
    starts = boundaries(lengths)[:-1]
    begin = rng.random(len(lengths)) * 0.7 * _SPAN
    interval = rng.random(len(lengths)) * (_SPAN - begin)
    gaps = rng.standard_exponential(len(first))
    within = np.where(first, 0.0, gaps * _SECONDS_BETWEEN_EVENTS)
    between = np.where(first, gaps, 0.0)
    rest = np.maximum(
        interval - np.add.reduceat(within, starts),
        _SECONDS_BETWEEN_SESSIONS * np.add.reduceat(first, starts, dtype=np.int64),
    )
    within += between * np.repeat(rest / np.add.reduceat(between, starts), lengths)
    elapsed = np.cumsum(within)
    elapsed -= np.repeat(elapsed[starts] - begin, lengths)
    return _START + elapsed.astype(np.int64)


def _walk(
    config: SimulationConfig,
    users: np.ndarray,
    sessions: _Sessions,
    rng: np.random.Generator,
) -> np.ndarray:
    """Item of each event, one of the user's interests: int64 numbers, popular ones low.

    users, sessions: of these events only, in order of user and time. Item i belongs to interest
    i modulo interests, and has there taste t and place p with i // interests = p * tastes + t.
    """
    group = users.astype(np.int64) * config.interests_per_user + sessions.slot
    shape = config.users * config.interests_per_user
    interest = _choose_interests(config, rng).ravel()[group]
    places = config.items // (config.interests * config.tastes)
    # The cube crowds the places where users start at the popular end of the interest.
    begin = (places * rng.random(shape) ** 3).astype(np.int64)
    steps = rng.integers(1, _LONGEST_STEP + 1, len(users))
    if config.repeats:
        # Coming back, a user goes over some of what he met last.
        back = rng.integers(0, int(2 * config.session_length) + 1, len(users))
        steps = np.where(sessions.first & sessions.returning, -back, steps)
    place = begin[group] + _cumulated(steps, group)
    taste = _zipf(config.tastes, shape, rng)[group]
    if not config.repeats:
        # Who has seen all that is to his taste takes up another one.
        taste = (taste + place // places) % config.tastes
    kept = rng.random(len(users)) < _TASTE_KEPT
    taste = np.where(kept, taste, rng.integers(0, config.tastes, len(users)))
    return interest + config.interests * (place % places * config.tastes + taste)


def _choose_interests(config: SimulationConfig, rng: np.random.Generator) -> np.ndarray:
    """Interests of each user, popular ones low, in the order in which they come: [users, n]."""
    interests = _zipf(config.interests, (config.users, config.interests_per_user), rng)
    for _ in range(_DRAWS_OF_INTERESTS):
        order = np.argsort(interests, axis=1, kind="stable")
        ordered = np.take_along_axis(interests, order, axis=1)
        user, twice = np.nonzero(ordered[:, 1:] == ordered[:, :-1])
        interests[user, order[user, twice + 1]] = _zipf(config.interests, len(user), rng)
    return interests


def _cumulated(steps: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Sum of the steps of a group before each event and at it, in order of events."""
    order = np.argsort(group, kind="stable")
    total, ordered = np.cumsum(steps[order]), group[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    total -= np.repeat(total[starts], np.diff(np.r_[starts, len(steps)]))
    result = np.empty_like(total)
    result[order] = total
    return result


def _draw_fashions(config: SimulationConfig, rng: np.random.Generator) -> np.ndarray:
    """Items in fashion in each period: int64 [periods, items]."""
    return rng.integers(0, config.items, (_FASHION_PERIODS, _FASHION_ITEMS))


def _place_elsewhere(
    config: SimulationConfig,
    items: np.ndarray,
    times: np.ndarray,
    elsewhere: np.ndarray,
    rng: np.random.Generator,
    fashions: np.ndarray | None,
) -> None:
    """Overwrite shares of the events by items in fashion at the time and by any items."""
    if fashions is None:
        fashions = _draw_fashions(config, rng)
    chosen = np.flatnonzero(elsewhere < config.fashion_share)
    period = np.minimum((times[chosen] - _START) * _FASHION_PERIODS // _SPAN, _FASHION_PERIODS - 1)
    items[chosen] = fashions[period, _zipf(_FASHION_ITEMS, len(chosen), rng)]
    chosen = np.flatnonzero(
        (elsewhere >= config.fashion_share) & (elsewhere < config.fashion_share + config.noise)
    )
    items[chosen] = _zipf(config.items, len(chosen), rng)


def _replace_repeats(
    config: SimulationConfig, users: np.ndarray, items: np.ndarray, rng: np.random.Generator
) -> None:
    """Overwrite what a user met before by unmet ones near them, at last by any item."""
    repeats = _repeats(users, items, config.items, np.arange(len(users)))
    attempt = 0
    while len(repeats):
        attempt += 1
        if attempt > _NEARBY_ATTEMPTS:
            items[repeats] = rng.integers(0, config.items, len(repeats))
        else:
            other_taste = attempt % _NEXT_PLACES == 0
            step = config.interests * (1 if other_taste else config.tastes)
            items[repeats] = (items[repeats] + step) % config.items
        concerned = np.zeros(config.users, dtype=bool)
        concerned[users[repeats]] = True
        repeats = _repeats(users, items, config.items, np.flatnonzero(concerned[users]))


def _repeats(users: np.ndarray, items: np.ndarray, size: int, events: np.ndarray) -> np.ndarray:
    """Those of ``events`` whose user met the item in an earlier one of them."""
    pairs = users[events].astype(np.int64) * size + items[events]
    order = np.argsort(pairs, kind="stable")
    ordered = pairs[order]
    return events[order[1:][ordered[1:] == ordered[:-1]]]


def _zipf(size: int, shape: int | tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Numbers under ``size``, number n with probability proportional to 1 / (n + 1)."""
    shares = np.cumsum(1 / np.arange(1, size + 1))
    drawn = np.searchsorted(shares, rng.random(shape) * shares[-1], side="right")
    return np.minimum(drawn, size - 1)


def _scattered_ids(size: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct integers that nobody takes for row numbers, in random order: int64 [size]."""
    return 10 * size + rng.choice(90 * size, size, replace=False).astype(np.int64)
