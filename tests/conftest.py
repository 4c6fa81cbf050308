"""Small event logs and surroundings that the tests of several rooms share."""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from blossomrec.data.log import EventLog

if TYPE_CHECKING:
    import polars as pl

if not torch.cuda.is_available():
    # Kernels are interpreted; Triton reads this when it is first imported, by whomever.
    os.environ["TRITON_INTERPRET"] = "1"
    if importlib.util.find_spec("triton"):
        import interpreted

        interpreted.make_faster()

TINY_USERS = 60
TINY_ITEMS = 80


def pytest_collection_finish():
    # What is imported by now stays: it need not be looked through for garbage again and again.
    gc.freeze()


def _events(histories: list[np.ndarray]) -> pl.DataFrame:
    """Histories of item numbers as a table with scattered ids, in order of time."""
    import polars as pl

    lengths = [len(history) for history in histories]
    events = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(len(histories)) * 3 + 1001, lengths),
            "item_id": np.concatenate(histories) * 7 + 50_003,
            "timestamp": np.concatenate([np.arange(n) * 60 + 1_700_000_000 for n in lengths]),
        }
    )
    return events.sort("timestamp", maintain_order=True)


@pytest.fixture(scope="session")
def tiny_events() -> pl.DataFrame:
    """Events of 60 users, whose histories have 1, 2, ..., 60 events, and 80 items; no repeats."""
    rng = np.random.default_rng(7)
    lengths = rng.permutation(np.arange(1, TINY_USERS + 1))
    # A walk around the ring of items, so that an item tells something about the next one.
    starts = rng.integers(0, TINY_ITEMS, TINY_USERS)
    return _events(
        [(start + np.arange(n)) % TINY_ITEMS for start, n in zip(starts, lengths, strict=True)]
    )


@pytest.fixture(scope="session")
def tiny_log(tiny_events, tmp_path_factory) -> EventLog:
    """``tiny_events``, prepared. Read only: it is shared by all tests."""
    return EventLog.prepare(tiny_events, tmp_path_factory.mktemp("tiny") / "log")


@pytest.fixture(scope="session")
def ordered_log(tiny_events, tmp_path_factory) -> EventLog:
    """``tiny_events`` with positions in place of times."""
    import polars as pl

    places = tiny_events.with_columns(timestamp=pl.int_range(pl.len()))
    return EventLog.prepare(places, tmp_path_factory.mktemp("ordered") / "log")


@pytest.fixture(scope="session")
def repeat_log(tmp_path_factory) -> EventLog:
    """40 users with 2 to 50 events each on 25 items; users meet items again."""
    rng = np.random.default_rng(11)
    lengths = np.concatenate([[2, 50], rng.integers(2, 51, 38)])
    events = _events([rng.integers(0, 25, n) for n in lengths])
    return EventLog.prepare(events, tmp_path_factory.mktemp("repeats") / "log")


@pytest.fixture(scope="session")
def kind_log(tiny_events, tmp_path_factory) -> EventLog:
    """``tiny_events`` with clicks, carts, purchases and events of no known kind, weights of 0 to 2,
    and a shop and a price as their context."""
    import polars as pl

    rng = np.random.default_rng(5)
    count = len(tiny_events)
    events = tiny_events.with_columns(
        kind=pl.Series(rng.choice(["click", "cart", "buy", None], count, p=[0.6, 0.1, 0.2, 0.1])),
        weight=pl.Series(rng.choice([0.0, 0.25, 1.0, 2.0], count, p=[0.1, 0.3, 0.3, 0.3])),
        shop=pl.Series(rng.choice(["web", "app"], count)),
        price=pl.Series(rng.normal(size=count)),
    )
    folder = tmp_path_factory.mktemp("kinds") / "log"
    return EventLog.prepare(events, folder, kind="kind", weight="weight", context=("shop", "price"))


@pytest.fixture(scope="session")
def one_thread():
    """From here on no more cores than other tests, and sums of floats always in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def wide_terminal(monkeypatch):
    """Tables and messages are not broken into lines."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def cli(capsys):
    """Runs the command line, which must succeed."""
    from command_line import succeed

    return functools.partial(succeed, capsys)


@pytest.fixture
def own_backbone(tmp_path, monkeypatch):
    """As if the package of ``examples/own_backbone`` were installed; gives its paths."""
    from example_files import install_own_backbone

    paths = install_own_backbone(tmp_path / "installed")
    for path in paths:
        monkeypatch.syspath_prepend(path)
    return paths


@pytest.fixture
def load_example(monkeypatch):
    """Loads a program of ``examples/``; what it registers is forgotten after the test."""
    from blossomrec.losses import LOSSES
    from blossomrec.registry import RERANKERS
    from blossomrec.serving.stores import STORES
    from example_files import example

    for registry in (LOSSES, RERANKERS, STORES):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    return example
