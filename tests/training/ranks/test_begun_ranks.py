"""A run is brought up to date by two ranks as by one, whichever number trained it."""

from __future__ import annotations

import pytest
from ranks_cases import BEGUN, assert_same_training
from small_training import logged

from blossomrec.run.description import read_run_config
from blossomrec.run.weights import read_weights


@pytest.mark.parametrize("before", ["one", "two"])
@pytest.mark.parametrize("name", BEGUN)
def test_two_ranks_bring_up_to_date_as_one(trained, name, before):
    one, two = (trained / f"{before}-{number}" / f"from-{name}" for number in ("one", "two"))
    assert_same_training(one, two)
    told = [read_run_config(run).ancestor for run in (one, two)]
    assert told[0] == told[1] is not None
    assert told[0]["items_new"] == 9 and told[0]["moments"]
    assert logged(one)[-1]["step"] >= 8


@pytest.mark.parametrize("name", BEGUN)
def test_what_is_seen_and_learned_is_the_same(trained, name):
    seen = [
        read_weights(trained / numbers / f"from-{name}" / "trained_on" / "seen.safetensors")
        for numbers in ("one-one", "one-two")
    ]
    assert all(seen[0][key].equal(seen[1][key]) for key in seen[0])
