"""Periods: what their length may be called, where they begin and end, what is refused."""

import polars as pl
import pytest
from days import DAY, DAYS, FIRST

from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError
from blossomrec.rolling.options import RollingOptions, UpdateOptions
from blossomrec.rolling.periods import moment, periods_of, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"), [("1d", DAY), ("12h", 43_200), ("1.5 d", 129_600), ("30m", 1_800)]
)
def test_lengths(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "d", "0d", "-1d", "1y", "1d 2h"])
def test_what_is_no_length(text):
    with pytest.raises(ConfigError, match=r"period is '.*such as 1d"):
        seconds_of(text)


def test_they_end_after_the_last_event_and_follow_each_other(days):
    periods = periods_of(days, RollingOptions(period="1d", periods=3))
    assert [one.number for one in periods] == [1, 2, 3]
    assert periods[-1].stop == FIRST + DAYS * DAY
    assert [(one.start, one.stop) for one in periods] == [
        (FIRST + n * DAY, FIRST + (n + 1) * DAY) for n in (7, 8, 9)
    ]
    assert moment(days, periods[0].start) == "2023-11-22T00:00:00Z"


@pytest.mark.parametrize("until", ["2023-11-23", "2023-11-23T00:00:00Z", str(FIRST + 8 * DAY)])
def test_they_end_where_they_are_told_to(days, until):
    periods = periods_of(days, RollingOptions(period="12h", periods=2, until=until))
    assert [one.stop for one in periods] == [FIRST + 8 * DAY - DAY // 2, FIRST + 8 * DAY]


@pytest.mark.parametrize("unit", [pl.Int64, pl.Float64])
def test_times_in_milliseconds(unit, tmp_path):
    rows = [("a", "x", 0), ("a", "y", 5), ("b", "x", 10 * DAY), ("b", "y", 10 * DAY + 1)]
    events = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    times = ((pl.col("timestamp") + FIRST) * 1_000).cast(unit)
    log = EventLog.prepare(events.with_columns(timestamp=times), tmp_path / "log")
    (period,) = periods_of(log, RollingOptions(period="1d", periods=1))
    last = (FIRST + 10 * DAY + 1) * 1_000
    assert period.stop > last
    assert period.stop == pytest.approx(last, abs=1)
    assert period.stop - period.start == pytest.approx(DAY * 1_000)


def test_an_order_has_no_periods(ordered_log):
    with pytest.raises(DataError, match=r"log has an order, no times"):
        periods_of(ordered_log, RollingOptions())


def test_nothing_before_the_first_is_refused(days):
    later = {"until": "2100-01-01", "period": "1d", "periods": 2}
    with pytest.raises(
        DataError, match=r"has no event in the 2 periods of 1d: the first one begins"
    ):
        periods_of(days, RollingOptions(**later))
    with pytest.raises(DataError, match=r"no event before the first of 10 periods of 1d"):
        periods_of(days, RollingOptions(periods=10))


def test_until_must_be_a_moment(days):
    with pytest.raises(ConfigError, match="until is 'soon'"):
        periods_of(days, RollingOptions(until="soon"))


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("retrain, stale", ("stale", "retrain")), ("update,update", ("update",))],
)
def test_strategies_are_chosen_by_name(text, chosen):
    assert RollingOptions(strategies=text).chosen == chosen


@pytest.mark.parametrize(("text", "words"), [("stale,best", "'best'"), (" , ", "names none")])
def test_unknown_strategies_are_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        _ = RollingOptions(strategies=text).chosen


def test_an_update_has_no_larger_batches_than_the_training():
    from blossomrec.config import TrainingConfig

    options = UpdateOptions(tokens_per_batch=2_048)
    assert options.of(TrainingConfig(tokens_per_batch=512))["tokens_per_batch"] == 512
    assert options.of(TrainingConfig(tokens_per_batch=8_192))["tokens_per_batch"] == 2_048
