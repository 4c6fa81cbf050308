"""An update whose training is done by several ranks of this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from daily_world import CONFIG

from blossomrec.data.log import EventLog
from blossomrec.errors import DataError
from blossomrec.ranks import RankLostError
from blossomrec.recommender import BlossomRec
from blossomrec.run.description import read_run_config
from blossomrec.training.ranks import launch

BY_TWO = replace(CONFIG, training=replace(CONFIG.training, devices=2))


def alone(config, arguments, again):
    """Trains in this process what ranks would train together."""
    assert config.training.devices == 2 and again.startswith("blossomrec update")
    verb, log, run, *flags = arguments
    options = dict(zip(flags[::2], flags[1::2], strict=False))
    assert verb == "train" and options["--resume"] == "auto"
    config = replace(config, training=replace(config.training, devices=1))
    BlossomRec(config).fit(EventLog.open(log), run, from_run=options["--from"], progress=False)


def test_ranks_train_from_the_run_in_use(world, monkeypatch):
    monkeypatch.setattr(launch, "launch", alone)
    world.a_day()
    line = world.update(BY_TWO, tolerance=1.0)
    assert (line["taken"], line["run"], line["from"]) == (True, "00002", "00001")
    ancestor = read_run_config(world.runs / "00002").ancestor
    assert ancestor is not None and Path(ancestor["run"]).name == "00001"


def test_bad_data_is_told_and_a_lost_rank_is_gone_on_with(world, monkeypatch):
    def fails(error):
        def launched(config, arguments, again):
            raise error

        monkeypatch.setattr(launch, "launch", launched)

    world.a_day()
    fails(RankLostError("rank 1 was killed"))
    with pytest.raises(RankLostError, match="rank 1 was killed"):
        world.update(BY_TWO)
    # What was taken in is in the log, and the next update goes on with the training.
    fails(DataError("rank 0 failed: nothing to learn from"))
    line = world.update(BY_TWO)
    assert line["run"] == "00002" and not line["taken"]
    assert line["why"] == "not trained: rank 0 failed: nothing to learn from"
