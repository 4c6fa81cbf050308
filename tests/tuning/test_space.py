"""Search spaces: what a file may say, and what is refused."""

import pytest

from blossomrec.config import ModelConfig, RunConfig, from_dict
from blossomrec.errors import ConfigError
from blossomrec.registry import BACKBONES
from blossomrec.tuning.space import names, read_space

REFUSED = {
    "[model]\ndropuot = {low = 0, high = 0.5}": ["model", "dropuot", "did you mean dropout"],
    "[model]\ndropout = {low = 0, high = 1.2}": ["model.dropout.high is 1.2", "at most 0.95"],
    "[model]\ndropout = {low = -0.1, high = 0.2}": ["model.dropout.low is -0.1", "at least 0"],
    "[model]\ndropout = {low = 0.3, high = 0.2}": ["model.dropout.low is 0.3", "high, 0.2"],
    "[model]\ndropout = {low = 0.1}": ["model.dropout.high is missing"],
    "[model]\ndropout = {low = 0, high = 0.5, lgo = true}": ["model.dropout.lgo is unknown"],
    "[model]\ndropout = {low = 0, high = 0.5, log = true}": ["model.dropout.low is 0", "above 0"],
    "[model]\ndropout = {low = 0, high = 0.5, log = 1}": ["model.dropout.log is 1"],
    "[model]\ndropout = {low = 0, high = 0.5, step = 0}": ["model.dropout.step is 0"],
    "[model]\nlayers = {low = 1, high = 3.5}": ["model.layers.high is 3.5", "whole number"],
    "[model]\nnorm = {low = 1, high = 2}": ["model.norm", "choices are needed"],
    "[model]\nnorm = {choices = ['pre', 'past']}": ["model.norm.choices[1] is 'past'", "post"],
    "[model]\nattention = {choices = ['flash']}": ["model.attention.choices[0]", "blossom"],
    "[model]\nlayers = {choices = []}": ["model.layers.choices is []"],
    "[model]\nlayers = {choices = [1, true]}": ["model.layers.choices[1] is True"],
    "[model]\nlayers = 2": ["nothing is searched"],
    "[evaluation]\nseed = {choices = [1]}": ["'evaluation'", "only model and training"],
    "[training]\nvalidation_users = {choices = [9]}": ["training.validation_users is the same"],
    "model = 3": ["model is 3: a table"],
    "[model": ["cannot be read"],
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_space_that_is_wrong_is_refused_with_file_option_and_value(tmp_path, text):
    path = tmp_path / "space.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_space(str(path), ModelConfig())
    for word in [str(path), *REFUSED[text]]:
        assert word in str(refused.value)


def test_an_unknown_name_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match="no search space nothing: give a file, or one of bert4"):
        read_space("nothing", ModelConfig())
    with pytest.raises(ConfigError, match="no search space of hstu-like"):
        read_space("", ModelConfig(backbone="hstu-like"))


@pytest.mark.parametrize("name", names())
def test_spaces_of_the_package_fit_and_hold_the_defaults(name):
    space = read_space(name, ModelConfig())
    space.check_base(RunConfig())
    own = space.values_of(space.config(RunConfig(), {}))
    assert own is not None
    for choice in range(2):
        ends = {
            option: one["choices"][-choice] if "choices" in one else one[("low", "high")[choice]]
            for option, one in space.searched.items()
        }
        space.config(RunConfig(), ends)


def test_every_backbone_of_ours_has_a_space():
    ours = ("sasrec", "bert4rec", "gru4rec", "mamba4rec", "hstu")
    assert set(ours) <= set(BACKBONES.names())
    for backbone in ours:
        for attention in ("full", "blossom") if backbone in ours[:2] else ("full",):
            model = ModelConfig(backbone=backbone, attention=attention)
            fixed = read_space("", model).fixed
            assert fixed["model.backbone"] == backbone
            assert fixed.get("model.attention", attention) == attention


def test_spaces_search_the_same_options_of_every_model_besides_its_own():
    shared = {"model.dropout", "model.layers", "training.learning_rate", "training.weight_decay"}
    ranges = [read_space(name, ModelConfig()).searched for name in names()]
    for one in ranges:
        assert {option: one[option] for option in shared} == {
            option: ranges[0][option] for option in shared
        }


def test_a_value_that_a_space_fixes_cannot_be_given_otherwise():
    given = from_dict({"model": {"backbone": "gru4rec"}})
    with pytest.raises(ConfigError, match=r"model\.backbone is 'gru4rec', but sasrec has 'sasrec'"):
        read_space("sasrec", given.model).check_base(given)
