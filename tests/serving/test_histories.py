"""What is kept in memory of users, and who has to leave."""

from types import SimpleNamespace

import numpy as np
import pytest

from blossomrec.config import ServingConfig
from blossomrec.data.fields import EventFields
from blossomrec.data.history import History
from blossomrec.errors import ConfigError
from blossomrec.serving.engine.reading import Histories
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.refusals import Refusal, plain, shown
from blossomrec.serving.stores.sqlite_store import SQLiteStore
from blossomrec.serving.stores.store import Event
from blossomrec.serving.version.catalogue import Catalogue
from blossomrec.serving.version.fields import KnownFields
from blossomrec.serving.version.histories import OVERHEAD, HistoryCache, UserHistory, window_start


def test_a_history_grows_and_knows_its_items():
    rng, history, rows = np.random.default_rng(0), UserHistory(), []
    for _ in range(200):
        new = rng.integers(0, 40, rng.integers(0, 5))
        history.add(History(new), len(new) + 1)
        rows += new.tolist()
        assert history.events.items.tolist() == rows
        assert history.seen.tolist() == sorted(set(rows))
    assert history.read == len(rows) + 200
    assert history.nbytes < OVERHEAD + 1.5 * 4 * len(rows) + 8 * 40 + 64


@pytest.mark.parametrize("max_len, step", [(10, 1), (10, 3), (10, 10), (2, 2)])
def test_a_window_is_never_empty_and_never_too_long(max_len, step):
    starts = [window_start(length, max_len, step) for length in range(1, 60)]
    for length, start in enumerate(starts, 1):
        assert max(0, length - max_len) <= start <= max(0, length - max_len + step - 1)
        assert start < length
        assert start % step == 0
    moves = np.diff(starts)
    assert set(moves) <= {0, step}


def test_a_moved_window_drops_what_was_encoded():
    history = UserHistory()
    history.add(History(np.arange(12)), 12)
    assert history.missing(10, 5) == 7 and history.start == 5
    history.encoded, history.query = 12, object()
    assert history.missing(10, 5) == 0
    history.add(History(np.arange(3)), 3)
    assert history.missing(10, 5) == 3 and history.query is not None
    history.add(History(np.arange(1)), 1)
    assert history.missing(10, 5) == 6
    assert history.start == history.encoded == 10 and history.query is None


def test_who_was_asked_for_longest_ago_leaves_first():
    def history(events):
        one = UserHistory()
        one.add(History(np.zeros(events, np.int64)), events)
        return one

    size = history(100).nbytes
    cache = HistoryCache(3 * size)
    for user in "abc":
        cache.put(user, history(100))
    assert cache.get("a") is not None
    cache.put("d", history(100))
    assert [user for user in "abcd" if cache.get(user)] == ["a", "c", "d"]
    assert (cache.nbytes, cache.evictions, len(cache)) == (3 * size, 1, 3)
    grown = cache.get("a")
    grown.add(History(np.zeros(100, np.int64)), 100)
    cache.put("a", grown)
    assert len(cache) == 2 and cache.nbytes <= 3 * size
    cache.put("e", history(10_000))
    assert (len(cache), cache.nbytes, cache.get("e")) == (0, 0, None)
    cache.put("f", history(1))
    cache.drop("f")
    cache.drop("nobody")
    assert cache.nbytes == 0


def test_who_is_put_behind_leaves_first_and_drives_nobody_out():
    one = UserHistory(7)
    size, cache = one.nbytes, HistoryCache(2 * one.nbytes)
    cache.put("a", one)
    assert cache.put_behind("b", UserHistory()) and cache.put_behind("a", UserHistory())
    assert cache.users() == ["a", "b"] and cache.number("a") == 7
    assert not cache.put_behind("c", UserHistory())
    assert "c" not in cache and (cache.nbytes, cache.evictions) == (2 * size, 0)
    cache.put("d", UserHistory())
    assert cache.users() == ["d", "a"]


def test_ids_of_numbers_and_text():
    numbers = Catalogue([12, -3, 2**64 - 1])
    assert [numbers.row(one) for one in (12, "12", "-3", str(2**64 - 1))] == [0, 0, 1, 2]
    for stranger in ("012", "12.0", "+12", " 12", "", "-", "１２", "x", 13, "9" * 5_000):
        assert numbers.row(stranger) == -1
    texts = Catalogue(["12", "milk", "012"])
    assert [texts.row(one) for one in ("milk", 12, "012", "x", -12)] == [1, 0, 2, -1, -1]
    assert texts.known(["x", "milk", 12]).tolist() == [1, 0]
    assert texts.known_rows(["milk", 12], "items").tolist() == [1, 0]
    with pytest.raises(Refusal, match=r"items\[1\] is 'x'") as refused:
        texts.known_rows(["milk", "x", "y"], "items")
    assert refused.value.body()["error"]["field"] == "items[1]"


def test_any_value_can_be_shown():
    for value in (None, True, 3, 2.5, "x", "é\ud800", [1] * 10_000, {"a": float("nan")}, "x" * 99):
        assert len(shown(value)) <= 83
    assert [plain(value) for value in (None, True, 3, 2.5, "x")] == [None, True, 3, 2.5, "x"]
    assert plain(float("nan")) == "nan" and plain(2**70) == str(2**70)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"step": 21}, "step is 21: it must be at most max_len, 20"),
        ({"step": 6, "max_len": 5}, "step is 6: it must be at most max_len, 5"),
        ({"batch": 0}, "batch is 0"),
        ({"wait_ms": float("nan")}, "wait_ms is nan"),
        ({"timeout": 0.0}, "timeout is 0.0"),
        ({"cache_mib": -1}, "cache_mib is -1"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(ConfigError, match=words):
        ServingConfig(**options).checked(20)


def test_times_of_the_store_reach_a_model_that_takes_them(tmp_path):
    store = SQLiteStore(tmp_path / "events.sqlite")
    with store.transaction():
        events = [Event(item, 1_700_000_000_000 + 10_000 * item) for item in (1, 2, 7, 8)]
        store.append("anna", events, now=1_800_000_000)
    catalogue, found = Catalogue([8, 2, 1]), []
    for inputs in (("items",), ("items", "times")):
        model = SimpleNamespace(kept_inputs=inputs)
        told = {"known": KnownFields(EventFields(), None, inputs), "cache": HistoryCache(1 << 20)}
        version = SimpleNamespace(model=model, catalogue=catalogue, **told)
        history, complete = Histories(store, Metrics()).read_on(version, "anna", None)
        assert complete and history.read == 4
        assert history.events.items.tolist() == [2, 1, 0]
        found.append(history.events.times)
    assert found[0] is None and found[1].tolist() == [1_700_000_010, 1_700_000_020, 1_700_000_080]
