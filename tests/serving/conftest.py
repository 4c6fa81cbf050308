"""A tiny run, and a server over it inside the test."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest

from blossomrec import EventLog

if find_spec("fastapi") is None:
    # Without the extra there is nothing here to test, on a machine that runs the tests of others.
    collect_ignore_glob = ["test_*.py"]
else:
    from places import Place, Redis, missing
    from serving_runs import Server, write_run


@pytest.fixture(scope="session")
def run(tiny_log, tmp_path_factory):
    """A run of a causal model with Blossom attention that sees 20 events. Read only."""
    return write_run(tmp_path_factory.mktemp("serving") / "run", tiny_log)


@pytest.fixture(scope="session")
def item_ids(tiny_log):
    """External ids of the catalogue, in order of row."""
    return tiny_log.item_vocabulary.ids(np.arange(tiny_log.num_items)).to_list()


@pytest.fixture(scope="session")
def larger_log(tiny_events, tmp_path_factory):
    """``tiny_events`` with a tenth more items, which stand before, between and behind the others:
    each has another row than in ``tiny_log``."""
    items, rng = tiny_events["item_id"].unique().sort(), np.random.default_rng(3)
    ids = np.concatenate([items, 7 * np.arange(1, len(items) // 10 + 1)])
    # Rows are given in order of how many users have an item.
    counts = rng.integers(1, 100, len(ids))
    more = pl.DataFrame(
        {
            "user_id": np.concatenate([np.arange(count) for count in counts]),
            "item_id": np.repeat(ids, counts),
            "timestamp": np.repeat(1_700_000_000 + np.arange(len(ids)), counts),
        },
        schema_overrides=tiny_events.schema,
    )
    events = pl.concat([more, tiny_events.select(more.columns)])
    return EventLog.prepare(events, tmp_path_factory.mktemp("larger") / "log")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """A Redis server that many tests use one after the other."""
    if missing():
        pytest.skip(str(missing()))
    server = Redis(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "redis"])
def place(request, tmp_path):
    """An empty place for a store of events, of each kind."""
    if request.param == "sqlite":
        folder = tmp_path / "place"
        folder.mkdir()
        return Place(folder)
    server = request.getfixturevalue("redis_server")
    assert server.ask("FLUSHDB") == b"+OK\r\n"
    return server


@pytest.fixture
def server(run, tmp_path, one_thread):
    """A server over an empty store, and a client of it."""
    with Server(run, tmp_path / "events.sqlite") as running:
        yield running


@pytest.fixture(scope="module")
def items(tiny_events):
    """Price, stock and brands of every item."""
    rng, ids = np.random.default_rng(1), tiny_events["item_id"].unique().sort()
    return pl.DataFrame(
        {
            "item_id": ids,
            "price": [None if n < 3 else float(n) for n in rng.integers(0, 30, len(ids))],
            "sold_out": rng.random(len(ids)) < 0.3,
            "brand": rng.choice(["a", "b", "c", "d"], len(ids)),
            "kinds": rng.choice(["x", "y", "x|y", "z"], len(ids)),
        }
    )


@pytest.fixture(scope="module")
def ruled_log(tiny_events, items, tmp_path_factory):
    return EventLog.prepare(tiny_events, tmp_path_factory.mktemp("ruled") / "log", items=items)


@pytest.fixture(scope="module")
def ruled_run(ruled_log, tmp_path_factory):
    """A run that keeps a table of items, which its model does not see."""
    return write_run(tmp_path_factory.mktemp("ruled") / "run", ruled_log, content="off")


@pytest.fixture(scope="module")
def ruled(ruled_run, ruled_log, tmp_path_factory, one_thread):
    """A server for all requests that change nothing."""
    with Server(ruled_run, tmp_path_factory.mktemp("ruled") / "events.sqlite") as server:
        ids = ruled_log.item_vocabulary
        for row in (3, 17, 41):
            history = ruled_log.history(row)
            rows = zip(history.items, history.times.tolist(), strict=True)
            events = [{"item": ids.ids([item])[0], "timestamp": at} for item, at in rows]
            server.append(ruled_log.user_vocabulary.ids([row])[0], events)
        yield server
