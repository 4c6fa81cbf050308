"""Names of parts: built in, registered, of installed packages, and unknown."""

from __future__ import annotations

import pickle
import sys

import numpy as np
import pytest

from blossomrec.config import ModelConfig, TrainingConfig, from_dict, registries
from blossomrec.errors import ConfigError, UnknownNameError
from blossomrec.losses import LOSSES, build_loss
from blossomrec.models import BACKBONES, SequenceModel, build_model
from blossomrec.models.baselines import BASELINES
from blossomrec.registry import ATTENTIONS, Registry
from blossomrec.serving.stores import STORES
from example_files import pretend_installed

PARTS = {"first": "json:dumps", "second": "json:loads"}
GROUP = "blossomrec.things"


@pytest.fixture
def things():
    return Registry("thing", GROUP, PARTS)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Pretends that a package with entry points of the group is installed."""

    def add(package, **points):
        pretend_installed(tmp_path / package, package, {GROUP: points})
        monkeypatch.syspath_prepend(tmp_path / package)
        return tmp_path / package

    return add


@pytest.mark.parametrize(
    "registry", [BACKBONES, ATTENTIONS, LOSSES, BASELINES], ids=lambda one: one.kind
)
def test_every_built_in_name_stands_for_something(registry):
    assert len(registry.names()) >= 3
    for name in registry:
        assert registry.get(name).__module__.startswith("blossomrec.")


def test_names_are_found_in_order_and_imported_when_asked_for(things, install):
    import json

    install("of-others", zeta="math:sqrt", alpha="nowhere.to.be_found:it")
    things.register("mine")(len)
    assert things.names() == ("first", "second", "mine", "alpha", "zeta")
    assert things.get("first") is json.dumps and things.get("mine") is len
    assert things.get("zeta")(9) == 3
    assert "alpha" in things and "gamma" not in things and 3 not in things and None not in things


@pytest.mark.parametrize("name", ["third", "x" * 10**6, "json:loads"])
def test_an_unknown_name_is_refused_with_those_there_are(things, name):
    with pytest.raises(UnknownNameError) as error:
        things.get(name)
    assert str(error.value).startswith(f"no thing '{name[:20]}")
    assert str(error.value).endswith(": choose one of first, second")
    assert len(str(error.value)) < 200
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.missing) == (str(error.value), error.value.missing)


def test_a_name_is_given_once(things):
    def one():
        return 1

    def other():
        return 2

    assert things.register("mine")(one) is one
    things.register("mine")(one)
    for name in ("mine", "first"):
        with pytest.raises(ConfigError, match=f"there is a thing '{name}' already"):
            things.register(name)(other)
    assert things.get("mine") is one
    for name in ("", " ", None, 3):
        with pytest.raises(ConfigError, match="the name of a thing is"):
            things.register(name)


def test_a_definition_may_come_again_as_in_a_notebook(things):
    def define(value):
        def part():
            return value

        return part

    things.register("mine")(define(1))
    things.register("mine")(define(2))
    assert things.get("mine")() == 2


def test_two_that_claim_a_name_are_both_named(things, install):
    install("one-package", mine="math:sqrt", first="math:sqrt")
    install("another", mine="math:sqrt")
    with pytest.raises(ConfigError, match=r"'mine' is claimed by the package .* and the pack"):
        things.get("mine")
    with pytest.raises(ConfigError, match="claimed by blossomrec and the package one-package"):
        things.get("first")
    assert things.names().count("mine") == 1


def test_a_package_that_cannot_be_imported_is_named(things, install):
    install("broken", mine="nowhere.to.be_found:it", other="math:nothing")
    words = "thing 'mine' of the package broken cannot be imported: No module named 'nowhere'"
    with pytest.raises(ConfigError, match=words):
        things.get("mine")
    with pytest.raises(ConfigError, match="'other' of the package broken cannot be imported"):
        things.get("other")


def test_a_part_is_of_the_right_kind(install):
    install("wrong-kind", model="json:dumps", number="math:pi")
    kinds = Registry("thing", GROUP, {}, base="blossomrec.models.sequence:SequenceModel")
    with pytest.raises(ConfigError, match="a subclass of SequenceModel is needed"):
        kinds.get("model")
    kinds.register("right")(SequenceModel)
    assert kinds.get("right") is SequenceModel
    with pytest.raises(ConfigError, match=r"'number' of the package wrong-kind is 3.14.*: a call"):
        Registry("thing", GROUP, {}).get("number")


def test_options_that_name_something_know_their_registries():
    assert registries() == {
        "model.backbone": BACKBONES,
        "model.attention": ATTENTIONS,
        "training.loss": LOSSES,
    }


@pytest.mark.parametrize(
    "section, option, names",
    [
        ("model", "backbone", "sasrec, bert4rec, gru4rec, mamba4rec, hstu"),
        ("model", "attention", "blossom, full, window, linrec, mamba, hstu"),
        ("training", "loss", "cross_entropy, sampled_softmax, gbce, bpr"),
    ],
)
@pytest.mark.parametrize("value", ["another", "json:loads", 3, None, ["sasrec"]])
def test_a_configuration_takes_known_names_alone(section, option, names, value):
    with pytest.raises(ConfigError) as error:
        from_dict({section: {option: value}})
    assert str(error.value).startswith(f"{section}.{option} is ")
    assert str(error.value).endswith(f": choose one of {names}")
    assert isinstance(error.value, UnknownNameError) == isinstance(value, str)


def test_an_unknown_name_never_stands_for_another():
    """Configurations that were made in code are checked as well."""
    with pytest.raises(ConfigError, match="no loss 'another'"):
        build_loss(TrainingConfig(loss="another"), np.ones(7), 7)
    with pytest.raises(ConfigError, match=r"model.backbone is 'another'"):
        build_model(ModelConfig(backbone="another"), 7)


def test_stores_are_named_by_the_scheme_of_a_url():
    assert STORES.names()[:3] == ("redis", "rediss", "unix")


def test_an_own_part_is_gone_with_its_package(own_backbone, monkeypatch):
    assert BACKBONES.names()[-1] == "running-mean"
    assert BACKBONES.get("running-mean").__name__ == "RunningMean"
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(own_backbone[0])])
    assert "running-mean" not in BACKBONES
