"""Habits of scikit-learn: parameters stored untouched, changed, cloned and shown."""

from __future__ import annotations

import copy

import pytest

from blossomrec.config import ModelConfig, RunConfig
from blossomrec.errors import ConfigError
from blossomrec.recommender import BlossomRec
from small_options import SMALL


def test_parameters_are_those_that_were_given():
    config, ks = RunConfig(model=ModelConfig(max_len=30)), [5, 7]
    recommender = BlossomRec(config, epochs=3, ks=ks)
    assert recommender.get_params() == {"config": config, "epochs": 3, "ks": ks}
    # What scikit-learn's clone asks of a constructor.
    for given in (recommender, BlossomRec(), BlossomRec(**SMALL)):
        parameters = {name: copy.deepcopy(one) for name, one in given.get_params(False).items()}
        twin = type(given)(**parameters)
        for name, value in twin.get_params(deep=False).items():
            assert value is parameters[name]
        assert twin.config == given.config


def test_parameters_are_changed_for_the_next_fit(tiny_log):
    recommender = BlossomRec(**SMALL).fit(tiny_log, progress=False)
    assert recommender.set_params(max_len=7, epochs=2) is recommender
    assert recommender.get_params()["max_len"] == 7
    # What is fitted is as it was.
    assert recommender.config.model.max_len == SMALL["max_len"]
    recommender.fit(tiny_log, progress=False)
    assert recommender.config.model.max_len == 7 and recommender.training.epochs == 2
    recommender.set_params(config=RunConfig(model=ModelConfig(max_len=9)))
    assert recommender.get_params()["max_len"] == 7


def test_wrong_parameters_change_nothing():
    recommender = BlossomRec(epochs=3)
    for wrong in ({"epoch": 3}, {"epochs": 0}, {"epochs": 4, "heads": -1}):
        with pytest.raises(ConfigError):
            recommender.set_params(**wrong)
    assert recommender.get_params() == {"config": None, "epochs": 3}
    assert recommender.set_params(epochs=5).config.training.epochs == 5


def test_a_recommender_shows_its_parameters():
    assert repr(BlossomRec()) == "BlossomRec()"
    assert repr(BlossomRec(epochs=3, loss="bpr")) == "BlossomRec(epochs=3, loss='bpr')"
    assert repr(BlossomRec(RunConfig(), epochs=3)) == "BlossomRec(config=RunConfig(...), epochs=3)"


def test_scikit_learn_clones_it(tiny_log):
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    recommender = BlossomRec(**SMALL).fit(tiny_log, progress=False)
    twin = base.clone(recommender)
    assert twin.model is None and twin.get_params() == recommender.get_params()
    assert base.clone(BlossomRec(RunConfig())).config == RunConfig()
