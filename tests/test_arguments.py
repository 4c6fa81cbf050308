import numpy as np
import pytest

from blossomrec.errors import ConfigError, one_of, true_or_false, whole_number


@pytest.mark.parametrize("value", [3, np.int32(3), np.uint8(3)])
def test_whole_numbers_are_taken(value):
    taken = whole_number("k", value)
    assert taken == 3 and type(taken) is int


@pytest.mark.parametrize("value", [True, np.True_, "3", 3.0, 1.5, None, [3], np.float32(3)])
def test_everything_else_is_no_whole_number(value):
    with pytest.raises(ConfigError, match=r"k is .*: a whole number is needed"):
        whole_number("k", value)


def test_whole_numbers_have_a_bound():
    assert whole_number("seed", 0, low=0) == 0
    with pytest.raises(ConfigError, match="k is 0: it must be at least 1"):
        whole_number("k", 0)


def test_true_and_false_are_taken_alone():
    assert [true_or_false("f", one) for one in (True, False, np.True_, np.False_)] == [1, 0, 1, 0]
    for value in (1, 0, "yes", None):
        with pytest.raises(ConfigError, match=r"f is .*: true or false is needed"):
            true_or_false("f", value)


def test_choices_are_named():
    assert one_of("on", "test", ("test", "valid")) == "test"
    for value in ("tset", None, ["test"]):
        with pytest.raises(ConfigError, match=r"on is .*: choose one of test, valid"):
            one_of("on", value, ("test", "valid"))
