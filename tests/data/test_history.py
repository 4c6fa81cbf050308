"""A history, its parts, and one that grows."""

from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest

from blossomrec.data.fields import ContextField, EventFields
from blossomrec.data.history import GrowingHistory, History, columns_of, given_history
from blossomrec.errors import DataError


def test_a_part_of_a_history_has_all_its_arrays():
    history = History(np.array([3, 1, 4, 1]), np.array([10, 20, 30, 40]))
    assert len(history) == 4 and len(history[-3:]) == 3
    assert history[-3:].times.tolist() == [20, 30, 40]
    odd = history[history.items % 2 == 1]
    assert (odd.items.tolist(), odd.times.tolist()) == ([3, 1, 1], [10, 20, 40])
    assert History.of([1, 2])[:1].times is None and History.of(history) is history


def test_arrays_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="times has 1 entries for 2 events"):
        History(np.array([1, 2]), np.array([10]))


@pytest.mark.parametrize("inputs", [("items",), ("items", "times")])
def test_a_growing_history_is_all_its_parts(inputs):
    rng, grown, parts = np.random.default_rng(0), GrowingHistory(inputs), []
    for _ in range(100):
        count = rng.integers(0, 6)
        parts.append(History(rng.integers(0, 99, count), rng.integers(0, 2**60, count)))
        grown.extend(parts[-1])
    assert grown.items.tolist() == [item for part in parts for item in part.items]
    assert len(grown) == len(grown.events) == len(grown.items)
    if "times" in inputs:
        assert grown.events.times.tolist() == [time for part in parts for time in part.times]
    else:
        assert grown.events.times is None
    assert grown.nbytes < 1.6 * len(grown) * (4 if len(inputs) == 1 else 12) + 64


def test_times_that_are_no_whole_numbers_stay_what_they_are():
    grown = GrowingHistory(("items", "times"))
    for times in ([1, 2], [], [2.5], [3]):
        grown.extend(History(np.zeros(len(times), int), np.array(times)))
    assert grown.events.times.tolist() == [1, 2, 2.5, 3]


GIVEN = EventFields(
    ("true", "false", "3"),
    (
        ContextField("shop", "category", ("web", "7", "true")),
        ContextField("price", "number", mean=2.0),
    ),
)


@pytest.mark.parametrize("form", ["lists", "polars", "pandas", "nullable", "arrow", "numpy"])
def test_values_of_events_are_read_as_tables_are(form):
    values = {
        "item_id": [5, 6, 7, 8],
        "kind": [True, False, None, True],
        "shop": ["web", " 7", None, ""],
        "price": [1.5, None, 2.0, 0.0],
    }
    if form in ("pandas", "nullable", "arrow"):
        pandas = pytest.importorskip("pandas")
        values = pandas.DataFrame(values)
        if form != "pandas":
            backend = "numpy_nullable" if form == "nullable" else "pyarrow"
            values = values.convert_dtypes(dtype_backend=backend)
    elif form == "polars":
        values = pl.DataFrame(values)
    elif form == "numpy":
        values = {name: np.array(each, object) for name, each in values.items()}
    history = given_history(np.arange(4), columns_of(values), GIVEN)
    assert history.kinds is not None and history.kinds.tolist() == [1, 2, 0, 1]
    assert history.context is not None
    expected = [[1, 1.5], [2, np.nan], [np.nan, 2], [0, 0]]
    assert np.array_equal(history.context, expected, equal_nan=True)


def test_numbers_as_kinds_and_categories_are_whole():
    columns = columns_of({"item_id": [5, 6], "kind": [3.0, 3], "shop": [7.0, np.float32(7)]})
    history = given_history(np.arange(2), columns, GIVEN)
    assert history.kinds is not None and history.kinds.tolist() == [3, 3]
    assert history.context is not None and history.context[:, 0].tolist() == [2, 2]


def test_dates_as_numbers_are_days_since_1970():
    noon = datetime(1970, 1, 3, 12, tzinfo=UTC)
    days = [date(1970, 1, 2), noon, noon.replace(tzinfo=None), date(1969, 12, 31)]
    history = given_history(
        np.arange(4), columns_of({"item_id": [1, 2, 3, 4], "price": days}), GIVEN
    )
    assert history.context is not None and history.context[:, 1].tolist() == [1, 2.5, 2.5, -1]


@pytest.mark.parametrize("wrong", ["fly", "", 3, ["true"], True])
def test_a_kind_that_is_none_is_refused(wrong):
    with pytest.raises(DataError, match="known are 'true', 'false', '3'"):
        GIVEN.kind(wrong)
