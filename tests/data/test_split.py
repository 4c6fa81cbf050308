"""What is held out, by user and by time."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import polars as pl
import pytest

from blossomrec.config import EvaluationConfig
from blossomrec.data.log import EventLog
from blossomrec.data.split import Cases, make_split, split_name
from blossomrec.errors import ConfigError, DataError

BY_TIME = EvaluationConfig(split="global-time", valid_share=0.2, test_share=0.3)


def log_of(histories: dict[str, list[float]]) -> EventLog:
    """A log in which each user meets new items at the given times."""
    rows = [(user, n, time) for user, times in histories.items() for n, time in enumerate(times)]
    return EventLog.prepare(
        pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    )


def rows(cases: Cases) -> list[tuple[int, int, int]]:
    return list(
        zip(
            cases.users.tolist(),
            cases.history_end.tolist(),
            cases.target_end.tolist(),
            strict=True,
        )
    )


class TestLeaveOneOut:
    def test_last_two_events_of_users_with_three(self):
        log = log_of({"a": [1], "b": [1, 2], "c": [1, 2, 3], "d": [1, 2, 3, 4, 5]})
        split = make_split(log, EvaluationConfig())
        assert split.train_end.tolist() == [1, 2, 1, 3]
        assert rows(split.valid) == [(2, 1, 2), (3, 3, 4)]
        assert rows(split.test) == [(2, 2, 3), (3, 4, 5)]
        assert split.train_end.dtype == split.valid.users.dtype == np.int64

    def test_histories_too_short(self):
        with pytest.raises(DataError, match="nothing to test on: no user has 3 events"):
            make_split(log_of({"a": [1, 2], "b": [1, 2]}), EvaluationConfig())

    def test_several_events_of_each_user_are_cases_of_their_own(self):
        log = log_of({"a": list(range(4)), "b": list(range(5)), "c": list(range(7))})
        config = EvaluationConfig(last_events=2)
        split = make_split(log, config)
        assert split_name(config) == "leave-last-2-out"
        assert split.train_end.tolist() == [4, 1, 3]
        assert rows(split.valid) == [(1, 1, 2), (1, 2, 3), (2, 3, 4), (2, 4, 5)]
        assert rows(split.test) == [(1, 3, 4), (1, 4, 5), (2, 5, 6), (2, 6, 7)]
        with pytest.raises(DataError, match="no user has 9 events or more, as the leave-last-4"):
            make_split(log, EvaluationConfig(last_events=4))

    def test_what_a_split_is_called(self):
        assert split_name(EvaluationConfig()) == "leave-one-out"
        assert split_name(EvaluationConfig(split="global-time", last_events=3)) == "global-time"


class TestGlobalTime:
    def test_periods(self):
        log = log_of(
            {
                "a": [0, 1, 2, 3, 7, 8],  # in all three periods
                "b": [4, 5, 6],  # ends in the validation period
                "c": [9],  # starts in the test period
            }
        )
        # Ten events at 0..9: validation starts at 5, the test at 7.
        split = make_split(log, BY_TIME)
        assert split.train_end.tolist() == [4, 1, 0]
        assert rows(split.valid) == [(1, 1, 3)]
        assert rows(split.test) == [(0, 4, 6)]

    def test_test_history_includes_the_validation_period(self):
        split = make_split(log_of({"a": list(range(10)), "b": [0, 1, 2]}), BY_TIME)
        assert rows(split.valid) == [(0, split.train_end[0], split.test.history_end[0])]
        assert rows(split.test) == [(0, split.test.history_end[0], 10)]

    def test_nothing_after_the_cut_is_trained_on(self, repeat_log):
        split = make_split(repeat_log, EvaluationConfig(split="global-time"))
        times = [
            repeat_log.timestamps[a:b]
            for a, b in zip(repeat_log.offsets[:-1], repeat_log.offsets[1:], strict=True)
        ]
        trained = np.concatenate([t[:end] for t, end in zip(times, split.train_end, strict=True)])
        valid = np.concatenate([times[u][a:b] for u, a, b in rows(split.valid)])
        test = np.concatenate([times[u][a:b] for u, a, b in rows(split.test)])
        assert trained.max() < valid.min() and valid.max() < test.min()
        assert 0.08 < (np.concatenate(times) >= test.min()).mean() < 0.15

    def test_without_validation(self):
        config = EvaluationConfig(split="global-time", valid_share=0.0, test_share=0.3)
        split = make_split(log_of({"a": list(range(10)), "b": [0, 1]}), config)
        assert len(split.valid) == 0 and rows(split.test) == [(0, 6, 10)]

    def test_all_at_the_same_time(self):
        with pytest.raises(DataError, match="nothing to test on: the times run from 5 to 5"):
            make_split(log_of({"a": [5, 5, 5], "b": [5, 5]}), BY_TIME)

    def test_nothing_to_validate_on(self):
        with pytest.raises(DataError, match="nothing to validate on"):
            make_split(log_of({"a": [0, 1, 2, 3, 4, 8, 9], "b": [5, 6, 7]}), BY_TIME)

    @pytest.mark.parametrize(("valid", "test"), [(0.1, 0.0), (0.5, 0.5)])
    def test_shares(self, tiny_log, valid, test):
        config = EvaluationConfig(split="global-time", valid_share=valid, test_share=test)
        with pytest.raises(ConfigError, match="test_share"):
            make_split(tiny_log, config)


def log_of_kinds(histories: dict[str, str]) -> EventLog:
    """A log in which each user has events of the kinds b(uy), c(lick) and o(rder), minutes apart,
    or nothing for a minute where there is a blank."""
    kinds = {"b": "buy", "c": "click", "o": "order"}
    events = [
        (user, f"{user}{n}", 1_700_000_000 + 60 * n, kinds[kind])
        for user, history in histories.items()
        for n, kind in enumerate(history)
        if kind != " "
    ]
    columns = ["user_id", "item_id", "timestamp", "kind"]
    return EventLog.prepare(pl.DataFrame(events, columns, orient="row"), kind="kind")


class TestKinds:
    histories: ClassVar = {
        "a": "ccbcbcc",  # both targets, clicks around them
        "b": "cccccc",  # nothing of the kind: trained on whole
        "c": "bcccb",  # no history before the first one
        "d": "cbcob",
        "e": "ccbc",  # one alone
    }

    def test_last_two_of_the_kind(self):
        log = log_of_kinds(self.histories)
        config = EvaluationConfig(kinds="buy")
        split = make_split(log, config)
        assert split_name(config) == "leave-one-out, targets: buy"
        assert split.train_end.tolist() == [2, 6, 5, 1, 4]
        assert rows(split.valid) == [(0, 2, 3), (3, 1, 2)]
        assert rows(split.test) == [(0, 4, 5), (3, 4, 5)]
        assert split.train_end.dtype == split.test.history_end.dtype == np.int64

    def test_several_kinds_and_events(self):
        log = log_of_kinds(self.histories)
        split = make_split(log, EvaluationConfig(kinds=" order, buy,buy"))
        assert rows(split.valid) == [(0, 2, 3), (3, 3, 4)]
        assert rows(split.test) == [(0, 4, 5), (3, 4, 5)]
        config = EvaluationConfig(kinds="click", last_events=2)
        split = make_split(log, config)
        assert split_name(config) == "leave-last-2-out, targets: click"
        assert rows(split.valid) == [(0, 1, 2), (0, 3, 4), (1, 2, 3), (1, 3, 4)]
        assert rows(split.test) == [(0, 5, 6), (0, 6, 7), (1, 4, 5), (1, 5, 6)]

    def test_all_kinds_are_the_split_without_any(self):
        log = log_of_kinds(self.histories)
        for split in ("leave-one-out", "global-time"):
            usual = make_split(log, EvaluationConfig(split=split, test_share=0.4))
            kinds = "order,click,buy"
            found = make_split(log, EvaluationConfig(split=split, test_share=0.4, kinds=kinds))
            assert found.train_end.tolist() == usual.train_end.tolist()
            assert rows(found.valid) == rows(usual.valid) and rows(found.test) == rows(usual.test)

    def test_periods(self):
        # Minutes 0 to 9: validation starts at 5, the test at 7.
        log = log_of_kinds({"a": "cccc   b c", "b": "c   cbc", "c": "bccccccc", "d": "c       b"})
        config = EvaluationConfig(
            split="global-time", valid_share=0.25, test_share=0.2, kinds="buy"
        )
        usual = make_split(log, EvaluationConfig(**vars(config) | {"kinds": ""}))
        split = make_split(log, config)
        assert split_name(config) == "global-time, targets: buy"
        assert split.train_end.tolist() == usual.train_end.tolist()
        assert set(rows(split.valid)) < set(rows(usual.valid)) and split.valid.kinds == (2,)
        assert [row[0] for row in rows(split.valid)] == [1]
        assert [row[0] for row in rows(split.test)] == [0, 3]
        assert set(rows(split.test)) < set(rows(usual.test))
        assert split.test.sample(1, 0).kinds == split.test.last_of_each_user().kinds == (2,)

    def test_kinds_that_are_not_there(self, tiny_log):
        log = log_of_kinds(self.histories)
        with pytest.raises(
            ConfigError, match=r"evaluation.kinds names 'sell': .* kinds 'click', 'buy'"
        ):
            make_split(log, EvaluationConfig(kinds="buy,sell"))
        with pytest.raises(ConfigError, match=r"evaluation.kinds is 'buy': .* have no kinds"):
            make_split(tiny_log, EvaluationConfig(kinds="buy"))
        with pytest.raises(ConfigError, match=r"evaluation.kinds is ' ,': it names no kind"):
            make_split(log, EvaluationConfig(kinds=" ,"))
        with pytest.raises(DataError, match=r"nothing to test on: no user has 2 events of kind or"):
            make_split(log, EvaluationConfig(kinds="order"))
        by_time = EvaluationConfig(split="global-time", kinds="order", test_share=0.1)
        with pytest.raises(DataError, match="period, there of kind order"):
            make_split(log, by_time)


class TestSample:
    cases = Cases(np.arange(100), np.arange(100) + 1, np.arange(100) + 2)

    def test_fixed_ordered_and_without_repeats(self):
        sample = self.cases.sample(30, seed=5)
        assert len(sample) == 30
        assert (np.diff(sample.users) > 0).all()
        assert (sample.history_end == sample.users + 1).all()
        assert (sample.target_end == sample.users + 2).all()
        assert rows(sample) == rows(self.cases.sample(30, seed=5))
        assert rows(sample) != rows(self.cases.sample(30, seed=6))

    def test_all_if_there_are_fewer(self):
        assert rows(self.cases.sample(101, seed=0)) == rows(self.cases)
