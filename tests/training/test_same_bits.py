"""Trainings that are alike in all have the same bits on a GPU, however sums are made there."""

import numpy as np
import polars as pl
import pytest
import torch
from small_training import outcome, small_config, small_train

from blossomrec.data.log import EventLog

USERS, ITEMS, EVENTS = 300, 500, 60
FORMS = {
    "own items": {"repeats": "on"},
    "content": {"content": "on"},
    "users": {"user_table": "on"},
    "times": {"time_gap": "on", "request_time": "on"},
    "linrec": {"attention": "linrec"},
    "window": {"attention": "window"},
    "gbce": {"loss": "gbce"},
    "bpr": {"loss": "bpr"},
    "hstu": {"backbone": "hstu", "time_gap": "on"},
}


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Few items, categories and names of towns have most of the events."""
    rng = np.random.default_rng(0)
    drawn = (ITEMS * rng.random(USERS * EVENTS) ** 3).astype(np.int64)
    events = {
        "user_id": np.repeat(np.arange(USERS), EVENTS),
        "item_id": drawn,
        "timestamp": 1_600_000_000 + np.tile(np.arange(EVENTS) ** 2 * 600, USERS),
    }
    names = ["|".join(f"c{(4 * each) % 7**place}" for place in (1, 2)) for each in range(ITEMS)]
    items = {"item_id": range(ITEMS), "genres": names, "price": rng.random(ITEMS)}
    users = {
        "user_id": range(USERS),
        "town": [f"town {each % 90}" for each in range(USERS)],
        "sex": [f"{each % 2}" for each in range(USERS)],
    }
    tables = {"items": pl.DataFrame(items), "users": pl.DataFrame(users)}
    folder = tmp_path_factory.mktemp("logs") / "log"
    return EventLog.prepare(pl.DataFrame(events), folder, **tables, user_kinds=("sex=category",))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", FORMS)
def test_the_same_training_twice(log, tmp_path, form):
    options = {"device": "cuda", "tokens_per_batch": 4_096, "learning_rate": 1e-2, "max_len": 50}
    config = small_config(hidden_size=32, **options, **FORMS[form])
    for name in ("one", "other"):
        small_train(log, config, tmp_path / name)
    assert outcome(tmp_path / "one") == outcome(tmp_path / "other")
