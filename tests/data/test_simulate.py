"""Simulated events have the character that is asked for."""

from __future__ import annotations

import dataclasses
import itertools
import time

import numpy as np
import polars as pl
import pytest

from blossomrec.data import simulate as simulation
from blossomrec.data.simulate import (
    PurchaseConfig,
    SimulationConfig,
    simulate,
    simulate_folder,
    simulate_purchases,
)
from blossomrec.errors import ConfigError

SMALL = SimulationConfig(users=300, items=800, events_per_user=60.0, max_events=400)


@pytest.fixture(scope="module")
def events() -> pl.DataFrame:
    return simulate(SMALL)


@pytest.fixture
def plain_ids(monkeypatch):
    """Ids are item and user numbers, from which interest, place and taste can be read."""
    monkeypatch.setattr(simulation, "_scattered_ids", lambda size, rng: np.arange(size))


def lengths(events: pl.DataFrame) -> np.ndarray:
    return events.group_by("user_id").len()["len"].to_numpy()


def test_columns_and_order(events):
    assert events.columns == ["user_id", "item_id", "timestamp"]
    assert all(dtype == pl.Int64 for dtype in events.dtypes)
    assert events["timestamp"].is_sorted()
    assert events["user_id"].n_unique() == 300
    assert events["user_id"].min() >= 3000 and events["item_id"].min() >= 8000


def test_same_seed_same_events(events):
    assert simulate(SMALL).equals(events)
    assert not simulate(dataclasses.replace(SMALL, seed=1)).equals(events)


def test_history_lengths(events):
    counts = lengths(events)
    assert counts.mean() == pytest.approx(60, rel=0.02)
    assert counts.min() >= 5 and counts.max() <= 400
    assert np.percentile(counts, 99) > 3 * np.median(counts)
    bounded = simulate(dataclasses.replace(SMALL, min_events=50, max_events=80))
    assert lengths(bounded).min() >= 50 and lengths(bounded).max() <= 80


def test_repeats_only_if_asked(events):
    assert events.select("user_id", "item_id").is_unique().all()
    repeated = simulate(dataclasses.replace(SMALL, repeats=True))
    assert 0.1 < 1 - repeated.select("user_id", "item_id").n_unique() / repeated.height < 0.9


def test_small_catalogue_without_repeats():
    config = SimulationConfig(users=50, items=40, events_per_user=15.0, interests=5, tastes=2)
    assert simulate(config).select("user_id", "item_id").is_unique().all()
    assert lengths(simulate(config)).max() <= 20


@pytest.mark.parametrize("share", ["noise", "fashion_share"])
def test_nothing_but_noise_or_fashion(share):
    config = dataclasses.replace(SMALL, **{"noise": 0.0, "fashion_share": 0.0, share: 1.0})
    assert simulate(config).height == pytest.approx(300 * 60, rel=0.02)


def test_popularity_is_uneven(events):
    counts = events["item_id"].value_counts(sort=True)["count"].to_numpy()
    assert counts[: len(counts) // 10].sum() > 0.25 * counts.sum()


def test_sessions_show_in_the_times(events):
    gaps = (
        events.sort("user_id", "timestamp", maintain_order=True)
        .select(pl.col("timestamp").diff().over("user_id"))["timestamp"]
        .drop_nulls()
    )
    starts = (gaps > 1800).mean()
    assert starts == pytest.approx(1 / SMALL.session_length, rel=0.2)
    assert gaps.filter(gaps <= 1800).median() < 120


def test_fashions_come_and_go():
    config = dataclasses.replace(SMALL, users=3000, fashion_share=0.3)
    events = simulate(config).with_columns(month=pl.col("timestamp") // (30 * 86_400))
    months = events["month"].value_counts().filter(pl.col("count") > 4000)["month"].to_list()
    tops = [
        set(events.filter(month=month)["item_id"].value_counts(sort=True)["item_id"].head(5))
        for month in months
    ]
    assert len(months) >= 6
    assert len(set.union(*tops)) > 2 * len(months)


def test_the_last_item_tells_more_than_popularity():
    events = simulate(SMALL).sort("user_id", "timestamp", maintain_order=True)
    pairs = events.with_columns(following=pl.col("item_id").shift(-1).over("user_id")).drop_nulls()
    known, asked = pairs[::2], pairs[1::2]

    def share_found(guesses: pl.DataFrame, on: str | None):
        if on is None:
            return np.isin(asked["following"], guesses["following"]).mean()
        return asked.join(guesses, on=[on, "following"], how="semi").height / asked.height

    popular = known["following"].value_counts(sort=True).head(10)
    after = (
        known.group_by("item_id", "following")
        .len()
        .sort("len", "following", descending=True)
        .group_by("item_id")
        .head(10)
    )
    assert share_found(after, "item_id") > 3 * share_found(popular, None)


@pytest.mark.usefixtures("plain_ids")
class TestLongMemory:
    config = SimulationConfig(
        users=100,
        items=16_000,
        events_per_user=500.0,
        min_events=400,
        max_events=600,
        interests_per_user=10,
        noise=0.0,
        fashion_share=0.0,
    )

    def returns(self, config) -> tuple[int, float]:
        """Events whose interest the user has hardly met in the last 100 events, but before, and
        the share of them that have the taste most frequent in its last 15 events before."""
        events = simulate(config).with_columns(
            interest=pl.col("item_id") % config.interests,
            taste=pl.col("item_id") // config.interests % config.tastes,
        )
        found = []
        for history in events.partition_by("user_id"):
            interests, tastes = history["interest"].to_numpy(), history["taste"].to_numpy()
            for place in range(101, len(interests)):
                before = tastes[: place - 100][interests[: place - 100] == interests[place]]
                recent = interests[place - 100 : place] == interests[place]
                if len(before) >= 15 and recent.sum() <= 2:
                    usual = np.bincount(before[-15:]).argmax()
                    found.append(usual == tastes[place])
        return len(found), float(np.mean(found))

    def test_what_was_met_long_ago_tells_what_comes_on_a_return(self):
        count, share = self.returns(self.config)
        assert count > 500 and share > 0.45

    def test_nothing_returns_if_not_asked(self):
        assert self.returns(dataclasses.replace(self.config, return_share=0.0))[0] < 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": 1}, "users is 1: it must be at least 2"),
        ({"noise": 1.5}, "noise is 1.5"),
        ({"events_per_user": 4.0}, "events_per_user is 4.0: it must be from min_events, 5"),
        ({"events_per_user": 401.0}, "to the most events of a user, 400"),
        ({"interests": 200}, "interests is 200 and tastes 8: their product must be at most"),
        ({"noise": 0.6, "fashion_share": 0.6}, "exceed 1 together"),
        ({"items": 1.5}, "items is 1.5: a whole number is needed"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        simulate(dataclasses.replace(SMALL, **changes))


class TestPurchases:
    def purchases(self, **options) -> pl.DataFrame:
        return simulate_purchases(SMALL, PurchaseConfig(**options))

    def test_most_events_are_clicks_as_without_purchases(self, events, monkeypatch):
        monkeypatch.setattr(simulation, "_scattered_ids", lambda size, rng: np.arange(size))
        found, plain = self.purchases(), simulate(SMALL)
        assert found.columns == [*events.columns, "kind", "predictable"]
        assert found["kind"].unique().sort().to_list() == ["buy", "click"]
        clicked = found["kind"] == "click"
        assert 0.88 < clicked.mean() < 0.92
        assert found.filter(clicked).select(plain.columns).equals(plain.filter(clicked))
        assert not found.filter(clicked)["predictable"].any()
        assert self.purchases().equals(found)

    @pytest.mark.parametrize("noise", [0.0, 0.3])
    def test_a_purchase_follows_from_the_one_before_it(self, noise):
        """Of each item the follower is counted; what is predictable is always that one."""
        found = self.purchases(noise=noise, goods=80).filter(kind="buy").sort("user_id")
        histories = found.partition_by("user_id")
        follower: dict[int, int] = {}
        for history in histories:
            walk = history.filter("predictable")["item_id"].to_list()
            for item, following in itertools.pairwise(walk):
                assert follower.setdefault(item, following) == following
        assert len(follower) == len(set(follower.values())) == 80
        for history in histories:
            told = history["predictable"].to_list()
            assert not told[0]
            assert noise or all(told[1:])
        later = found.filter(pl.col("user_id").is_duplicated())["predictable"].mean()
        assert (1 - noise) * 0.6 < later < 1 - noise

    def test_the_share_of_purchases_and_their_goods(self):
        found = self.purchases(share=0.4, goods=33, needs=4)
        assert (found["kind"] == "buy").mean() == pytest.approx(0.4, abs=0.02)
        assert found.filter(kind="buy")["item_id"].n_unique() == 32
        assert not self.purchases(noise=1.0)["predictable"].any()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"goods": 801}, "goods is 801: it must be from 2 . needs, 16, to items, 800"),
            ({"needs": 300}, "goods is 400: it must be from 2 . needs, 600"),
            ({"share": 0.0}, "share is 0.0"),
        ],
    )
    def test_refused(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            self.purchases(**changes)


def test_speed():
    start = time.process_time()
    config = SimulationConfig(users=10_000, items=20_000, events_per_user=100.0, interests=200)
    assert simulate(config).height == pytest.approx(1_000_000, rel=0.01)
    assert time.process_time() - start < 10


def test_a_folder_has_the_same_character_in_files_of_some_users(tmp_path):
    config = SimulationConfig(users=401, items=600, events_per_user=40, fashion_share=0.3)
    total = simulate_folder(config, tmp_path / "in", users_at_once=100)
    names = [path.name for path in sorted((tmp_path / "in").iterdir())]
    assert names == [f"part-0000{part}.parquet" for part in range(4)]
    files = [pl.read_parquet(tmp_path / "in" / name) for name in names]
    assert [one["user_id"].n_unique() for one in files] == [100, 100, 100, 101]
    assert all(one["timestamp"].is_sorted() for one in files)
    events = pl.concat(files)
    assert events.height == total and events["user_id"].n_unique() == 401
    assert abs(total / 401 / 40 - 1) < 0.1
    # What is in fashion is so in all files, and popular items are the same ones.
    most = [set(one["item_id"].value_counts(sort=True)["item_id"].head(60)) for one in files]
    assert len(set.intersection(*most)) > 20
    again = simulate_folder(config, tmp_path / "again", users_at_once=100)
    assert again == total
    assert pl.read_parquet(tmp_path / "again" / names[0]).equals(files[0])
    with pytest.raises(ConfigError, match="users_at_once is 1: it must be at least 2"):
        simulate_folder(config, tmp_path / "in", users_at_once=1)
