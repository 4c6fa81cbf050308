"""Units of time: told from the numbers, given, and what they are in seconds."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from blossomrec import EventLog
from blossomrec.data.units import UNITS, Seconds, as_seconds, unit_of_times
from blossomrec.errors import ConfigError

NOW = 1_700_000_000


def prepared(times, **options) -> EventLog:
    count = len(times)
    frame = pl.DataFrame(
        {"user_id": [1, 2] * (count // 2), "item_id": [1, 2] * (count // 2), "timestamp": times}
    )
    return EventLog.prepare(frame, **options)


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_is_told_from_the_numbers_and_said(unit):
    log = prepared([NOW * UNITS[unit], (NOW + 60) * UNITS[unit]])
    assert log.time_unit == unit
    assert log.summary["time"]["unit"] == unit
    assert log.summary["time"]["last_iso"] == "2023-11-14T22:14:20Z"


def test_numbers_that_are_no_times_are_an_order():
    assert prepared([1, 2]).time_unit == "order"
    # Seconds and milliseconds in one log are in no unit.
    assert unit_of_times(NOW, NOW * 1_000) == "order"


def test_the_unit_can_be_given():
    assert prepared([NOW, NOW + 1], time_unit="order").time_unit == "order"
    assert prepared([5, 6], time_unit="seconds").time_unit == "seconds"
    with pytest.raises(ConfigError, match="time_unit is 'days': choose one of auto, seconds"):
        prepared([5, 6], time_unit="days")


def test_datetimes_need_no_unit():
    times = pl.Series([0, 60_000_000]).cast(pl.Datetime("us")).to_list()
    assert prepared(times).time_unit == "microseconds"
    assert prepared(times, time_unit="order").time_unit == "order"
    with pytest.raises(ConfigError, match="time_unit is 'seconds': the table has datetimes"):
        prepared(times, time_unit="seconds")


def test_a_log_of_an_earlier_version_is_looked_at(tmp_path):
    prepared([NOW, NOW + 1], folder=tmp_path / "log")
    path = tmp_path / "log" / "log.json"
    description = json.loads(path.read_text())
    del description["time_unit"]
    path.write_text(json.dumps(description | {"timestamp_unit": None}))
    assert EventLog.open(tmp_path / "log").time_unit == "seconds"


def test_seconds_are_rounded_down():
    assert Seconds(np.array([1_999, -1]), "milliseconds")[:].tolist() == [1, -1]
    found = Seconds(np.array([1.9, 2.0, 7.5]), "seconds")[np.array([0, 2])]
    assert found.tolist() == [1, 7]
    assert found.dtype == np.int64


def test_a_missing_time_of_a_history_is_refused():
    for times, place in (([None, NOW], 0), ([NOW, None], 1)):
        with pytest.raises(ConfigError, match=rf"timestamp\[{place}\] is None: a datetime"):
            as_seconds("timestamp", times, 2)
