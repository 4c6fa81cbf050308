"""Rolling evaluations: what is tested, against plain loops; strategies; going on after a stop."""

import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from days import DAY, DAYS, FIRST, PERIODS, days_of_events, small

from blossomrec.data.batch import pack
from blossomrec.errors import ConfigError, DataError, RunError
from blossomrec.rolling import UpdateOptions, jobs, rolling
from blossomrec.rolling.measured import metrics_of, shares_of, total
from blossomrec.rolling.options import RollingOptions
from blossomrec.rolling.paired import share_interval, write_ranks
from blossomrec.rolling.study import Opened, Study
from blossomrec.rolling.targets import MISS, rank_targets, targets_of
from blossomrec.rolling.training import split_before
from blossomrec.run.description import read_run_config
from blossomrec.run.tables import open_vocabulary
from blossomrec.run.weights import load_model
from blossomrec.training.watch import TrainingInterrupted

pytestmark = pytest.mark.usefixtures("one_thread")
UPDATE = UpdateOptions(epochs=2)
METRICS = {f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in (5, 10, 20)}


def opened(log, folder, **options):
    options = RollingOptions(**PERIODS | options)
    return Opened(Study(log.folder, folder, small(), options, UPDATE))


def without_time(lines):
    return [{name: each for name, each in line.items() if name != "seconds"} for line in lines]


def by_hand(period, *, first):
    """User, item and what came before, of the events of a period that are predicted."""
    histories, found, alone = {}, [], 0
    for user, item, time in days_of_events().iter_rows():
        before = histories.setdefault(user, [])
        if period.start <= time < period.stop:
            if not before:
                alone += 1
            elif not first or not any(one[0] == user for one in found):
                found.append((user, item, list(before)))
        before.append(item)
    return sorted(found, key=lambda one: (one[0], len(one[2]))), alone


@pytest.mark.parametrize("first", [False, True])
def test_the_targets_are_the_events_of_the_period(days, tmp_path, first):
    study = opened(days, tmp_path)
    for period in study.periods:
        targets = targets_of(days, period, first=first)
        expected, alone = by_hand(period, first=first)
        users = days.user_vocabulary.ids(targets.users).to_list()
        items = days.item_vocabulary.ids(targets.items).to_list()
        found = list(zip(users, items, targets.positions.tolist(), strict=True))
        assert found == [(user, item, len(before)) for user, item, before in expected]
        assert targets.without_history == alone
    assert sum(len(targets_of(days, one, first=False)) for one in study.periods) > 50


def test_ranks_are_those_of_a_plain_loop(days, rolled):
    """Of a model that does not know all items, whatever it is shown of the period."""
    folder, _ = rolled
    study = opened(days, folder)
    run = folder / "001" / "stale" / "run"
    model, period = load_model(run), study.periods[-1]
    ids = days.item_vocabulary.ids(open_vocabulary(run, read_run_config(run)).listed()).to_list()
    rows = {item: row for row, item in enumerate(ids)}
    expected = []
    for _, item, before in by_hand(period, first=False)[0]:
        history = [rows[one] for one in before if one in rows]
        if item not in rows or not history:
            expected.append(int(MISS))
            continue
        with torch.no_grad():
            batch = pack([np.array(history[-model.max_len :])])
            scores = model.scores(model.queries(batch), 0, model.num_items)[0].numpy()
        own, others = scores[rows[item]], np.delete(scores, [*history, rows[item]])
        expected.append(int((others >= own).sum()))
    found = rank_targets(study, targets_of(days, period, first=False), run, "cpu")
    assert found.tolist() == expected
    assert (found == MISS).any() and (found < 20).any()


def test_lines_count_what_is_known_and_what_is_new(days, rolled):
    _, outcome = rolled
    events, start = days_of_events(), FIRST + (DAYS - 3) * DAY
    first = dict(events.group_by("item_id").agg(pl.col("timestamp").min()).iter_rows())
    assert [(line["period"], line["strategy"]) for line in outcome.lines] == [
        (number, strategy) for number in (1, 2, 3) for strategy in ("stale", "update", "retrain")
    ]
    for line in outcome.lines:
        begins = start + (line["period"] - 1) * DAY
        period = dataclasses.make_dataclass("Period", ["start", "stop"])(begins, begins + DAY)
        targets = [item for _, item, _ in by_hand(period, first=False)[0]]
        assert line["targets"] == len(targets)
        assert line["new_item_targets"] == sum(first[item] >= start for item in targets)
        assert line["old_item_targets"] == len(targets) - line["new_item_targets"]
        assert line["unknown_to_all"] == sum(first[item] >= begins for item in targets)
        assert line["catalogue"] == sum(time < begins for time in first.values())
        knows = start if line["strategy"] == "stale" else begins
        assert line["model_items"] == sum(time < knows for time in first.values())
        assert line["missed_as_unknown"] >= sum(first[item] >= knows for item in targets)
        assert set(line["metrics"]) == {
            f"{m}@{k}" for m in ("hr", "ndcg", "mrr") for k in (5, 10, 20)
        }
        if line["strategy"] == "stale" and line["new_item_targets"]:
            assert set(line["new_item_metrics"].values()) == {0.0}
    assert max(line["new_item_targets"] for line in outcome.lines) > 0


def test_in_the_first_period_all_have_the_same_model(rolled):
    _, outcome = rolled
    lines = [line for line in outcome.lines if line["period"] == 1]
    assert len({json.dumps(line["metrics"]) for line in lines}) == 1
    assert {line["run"] for line in lines} == {"001/stale/run"}
    assert {line["strategy"]: line["seconds"] > 0 for line in lines} == {
        "stale": True,
        "update": False,
        "retrain": True,
    }


def test_later_each_has_its_own(rolled):
    folder, outcome = rolled
    for strategy, (low, high) in outcome.intervals.items():
        assert low <= outcome.shares(strategy)[0] <= high
    assert outcome.intervals.keys() == {"stale", "update"}
    for number in (2, 3):
        runs = {one["strategy"]: one["run"] for one in outcome.lines if one["period"] == number}
        assert runs == {
            "stale": "001/stale/run",
            "update": f"{number:03}/update/run",
            "retrain": f"{number:03}/retrain/run",
        }
        before = read_run_config(folder / runs["update"]).ancestor["run"]
        expected = "001/stale" if number == 2 else "002/update"
        assert before.endswith(f"{expected}/run")
    assert read_run_config(folder / "003/retrain/run").ancestor is None
    # Nothing goes on from these, and no log is left.
    assert not list(folder.glob("*/retrain/run/checkpoints"))
    assert not list(folder.glob("*/*/log"))


def test_an_update_without_new_events_is_the_model_as_it_was(days, tmp_path):
    """Nothing happens in the night, before which the last events were in the evening."""
    until = str(FIRST + 9 * DAY + 1_800)
    options = {"period": "15m", "periods": 3, "until": until, "strategies": "stale,update"}
    outcome = rolling(days, tmp_path, small(), update=UPDATE, progress=False, **options)
    assert {line["run"] for line in outcome.lines} == {"001/stale/run"}
    assert {line["targets"] for line in outcome.lines} == {0}
    assert {json.dumps(line["metrics"]) for line in outcome.lines} == {"{}"}
    assert sum(line["seconds"] > 0 for line in outcome.lines) == 1
    assert outcome.shares("update") is None


def test_all_inputs_and_tables_go_along(rich_log, tmp_path):
    config = small(
        **dict.fromkeys(("content", "event_kinds", "request_kind", "context", "user_table"), "on"),
        time_gap="on",
        request_time="on",
    )
    outcome = rolling(rich_log, tmp_path, config, update=UPDATE, progress=False, **PERIODS)
    assert not outcome.missing
    found = outcome.totals()
    assert found["retrain"].values["new_item_metrics"].keys() == METRICS
    info = read_run_config(tmp_path / "003/update/run")
    assert set(info.fields.kinds) == {"gift", "view"}
    assert read_run_config(tmp_path / "001/stale/run").fields.kinds == ("view",)


@pytest.mark.parametrize("validate", [False, True])
def test_updates_hold_out_only_where_they_are_told_to(days, tmp_path, validate):
    update = UpdateOptions(epochs=1, validate=validate)
    options = {"periods": 2, "strategies": "update", "validation": 0.3}
    rolling(days, tmp_path, small(), update=update, progress=False, **options)
    (line,) = (tmp_path / "002/update/run/log.jsonl").read_text().splitlines()
    assert (json.loads(line)["validation"] is not None) == validate
    first = (tmp_path / "001/stale/run/log.jsonl").read_text().splitlines()
    assert all(json.loads(each)["validation"] for each in first)


def test_a_model_of_masked_events_is_updated_on_all(days, tmp_path):
    update = UpdateOptions(epochs=1, events="all")
    config = small(backbone="bert4rec", epochs=1)
    options = {"periods": 2, "strategies": "stale,update"}
    outcome = rolling(days, tmp_path, config, update=update, progress=False, **options)
    assert [line["run"] for line in outcome.of("update")] == ["001/stale/run", "002/update/run"]


class TestGoingOn:
    def test_what_is_done_is_not_done_again(self, days, rolled, monkeypatch):
        folder, outcome = rolled
        monkeypatch.setattr(jobs, "rank_targets", None)
        monkeypatch.setattr("blossomrec.rolling.training.train", None)
        again = rolling(days, folder, small(), update=UPDATE, progress=False, **PERIODS)
        assert again.lines == outcome.lines
        lines = [json.loads(line) for line in (folder / "periods.jsonl").read_text().splitlines()]
        assert lines == outcome.lines

    @pytest.mark.parametrize("stop", range(5))
    def test_stopped_anywhere_it_goes_on_to_the_same_numbers(
        self, days, rolled, tmp_path, monkeypatch, stop
    ):
        """Stopped after a while of writing: in a training, before its numbers, or in a cut log."""
        _, outcome = rolled
        stops = [
            ("blossomrec.rolling.training.train", 2),
            ("blossomrec.rolling.training.write_part", 3),
            ("blossomrec.rolling.training.write_json", 1),
            ("blossomrec.rolling.jobs.rank_targets", 4),
            ("blossomrec.rolling.jobs.write_json", 5),
        ]
        name, calls = stops[stop]
        module, _, function = name.rpartition(".")
        module = __import__(module, fromlist=[function])
        real, made = getattr(module, function), []

        def stopping(*given, **options):
            made.append(1)
            found = real(*given, **options)
            if len(made) == calls:
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(module, function, stopping)
        options = {"update": UPDATE, "progress": False, **PERIODS}
        with pytest.raises(KeyboardInterrupt):
            rolling(days, tmp_path, small(), **options)
        monkeypatch.setattr(module, function, real)
        again = rolling(days, tmp_path, small(), **options)
        assert without_time(again.lines) == without_time(outcome.lines)

    def test_stopped_within_a_training_it_goes_on_there(self, days, rolled, tmp_path, monkeypatch):
        from blossomrec.training.trainer import Trainer

        _, outcome = rolled
        real, epochs = Trainer._finish_epoch, []

        def stopping(self):
            real(self)
            epochs.append(1)
            if len(epochs) == 3:
                self._save()
                raise TrainingInterrupted(2)

        monkeypatch.setattr(Trainer, "_finish_epoch", stopping)
        options = {"update": UPDATE, "progress": False, **PERIODS}
        with pytest.raises(TrainingInterrupted):
            rolling(days, tmp_path, small(), **options)
        monkeypatch.setattr(Trainer, "_finish_epoch", real)
        again = rolling(days, tmp_path, small(), **options)
        assert without_time(again.lines) == without_time(outcome.lines)

    def test_strategies_may_follow_later(self, days, rolled, tmp_path):
        _, outcome = rolled
        options = {"update": UPDATE, "progress": False, **PERIODS}
        for strategies in ("stale", "stale,retrain", "update"):
            found = rolling(days, tmp_path, small(), strategies=strategies, **options)
            assert found.strategies == strategies.split(",")
        again = rolling(days, tmp_path, small(), **options)
        assert without_time(again.lines) == without_time(outcome.lines)

    @pytest.mark.parametrize(
        ("config", "options", "words"),
        [
            ({"epochs": 3}, {}, "training.epochs is 3, but .* begun with 2"),
            ({}, {"targets": "first"}, "options.targets is 'first', but"),
            ({}, {"update": UpdateOptions(epochs=9)}, "update.epochs is 9, but"),
        ],
    )
    def test_as_something_else_it_does_not_go_on(self, days, rolled, config, options, words):
        folder, _ = rolled
        given = {"update": UPDATE, "progress": False, **PERIODS} | options
        with pytest.raises(ConfigError, match=words):
            rolling(days, folder, small(**config), **given)

    def test_nor_on_another_log(self, rich_log, rolled):
        folder, _ = rolled
        with pytest.raises(ConfigError, match="was begun with another log"):
            rolling(rich_log, folder, small(), update=UPDATE, progress=False, **PERIODS)

    @pytest.mark.parametrize("name", ["rolling.json", "002/update/trained.json"])
    def test_damage_is_told(self, days, rolled, tmp_path, name):
        folder = tmp_path / "rolling"
        shutil.copytree(rolled[0], folder)
        (folder / name).write_text("{")
        (folder / "002/update/measured.json").unlink()
        with pytest.raises(RunError, match="is damaged"):
            rolling(days, folder, small(), update=UPDATE, progress=False, **PERIODS)


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ({}, {"periods": 0}, "periods is 0"),
        ({}, {"period": "soon"}, "period is 'soon'"),
        ({}, {"strategies": "none"}, "'none'"),
        ({}, {"days": 3}, "unknown option days"),
        ({"ranking": "uni100"}, {}, "evaluation.ranking is 'uni100'"),
        ({"last_events": 3}, {}, "evaluation.last_events is 3"),
        ({"backbone": "bert4rec"}, {}, "choose update.events all"),
    ],
)
def test_wrong_options_are_refused(days, tmp_path, config, options, words):
    with pytest.raises(ConfigError, match=words):
        rolling(days, tmp_path / "folder", small(**config), **PERIODS | options)
    assert not list(tmp_path.glob("folder/*"))


def test_an_order_is_refused(ordered_log, tmp_path):
    with pytest.raises(DataError, match="an order, no times"):
        rolling(ordered_log, tmp_path / "folder", small(), **PERIODS)


def test_the_same_users_are_held_out_day_after_day(days, tmp_path):
    """So that nothing validates a training that an earlier one was trained on."""
    from blossomrec.rolling.past_log import write_part

    study, held = opened(days, tmp_path), []
    for period in study.periods:
        log = write_part(days, tmp_path / "log", study.before(period))
        split = split_before(log, 0.3, 0, days.num_users)
        lengths = np.diff(log.offsets)
        held.append(set(log.user_vocabulary.listed()[split.valid.users].tolist()))
        out = lengths - split.train_end
        assert set(np.flatnonzero(out).tolist()) == set(split.valid.users.tolist())
        assert out.max() == 1 and len(split.test) == 0
        assert (split.valid.target_end == lengths[split.valid.users]).all()
    assert held[0] <= held[1] <= held[2] and 3 < len(held[0]) < 20
    assert len(split_before(log, 0.0, 0, days.num_users).valid) == 0


def test_totals_are_means_over_all_targets():
    def line(number, targets, value, seconds):
        metrics = {"ndcg@10": value} if targets else {}
        counts = {"targets": targets, "new_item_targets": 0, "old_item_targets": targets}
        parts = {"metrics": metrics, "new_item_metrics": {}, "old_item_metrics": metrics}
        return {"period": number, "seconds": seconds, **counts, **parts}

    lines = [line(2, 10, 0.1, 1.0), line(3, 0, 0.0, 2.0), line(4, 30, 0.5, 3.0)]
    found = total(lines)
    assert found.values["metrics"]["ndcg@10"] == pytest.approx((10 * 0.1 + 30 * 0.5) / 40)
    assert (found.seconds, found.values["new_item_metrics"]) == (6.0, {})
    others = [line(2, 10, 0.2, 10.0), line(4, 30, 0.5, 10.0), line(5, 30, 0.9, 10.0)]
    assert shares_of(lines, others) == pytest.approx((16 / 17, 4 / 20))
    assert shares_of(lines, []) is None


def test_intervals_are_over_users(tmp_path):
    """Of two users: as one, as the other, or as both together."""
    for name, ranks in (("one", [0, 0, 2, MISS]), ("other", [0, 0, 0, 0])):
        write_ranks(tmp_path / name, np.array([3, 3, 8, 8]), np.array(ranks))
    pair = (tmp_path / "one", tmp_path / "other")
    assert share_interval([pair]) == pytest.approx((0.25, 1.0))
    write_ranks(tmp_path / "one", np.array([3, 3, 8, 9]), np.array([0, 0, 0, 0]))
    with pytest.raises(RunError, match="of different targets"):
        share_interval([pair])
    write_ranks(tmp_path / "other", np.array([3, 3, 8, 9]), np.full(4, MISS))
    assert share_interval([pair]) is None and share_interval([]) is None
    np.save(tmp_path / "one/ranks.npy", np.zeros(3))
    with pytest.raises(RunError, match="is damaged"):
        share_interval([pair])


def test_metrics_of_ranks():
    found = metrics_of(np.array([0, 9, 10, MISS]), (5,))
    assert found["hr@10"] == 0.5 and found["hr@5"] == 0.25
    assert found["ndcg@10"] == pytest.approx((1 + 1 / np.log2(11)) / 4, abs=1e-6)
    assert found["mrr@10"] == pytest.approx((1 + 1 / 10) / 4)
    assert metrics_of(np.empty(0, np.int64), (5,)) == {}


def test_a_log_may_be_given_by_its_folder(days, rolled, tmp_path):
    folder = tmp_path / "rolling"
    shutil.copytree(rolled[0], folder)
    again = rolling(str(days.folder), folder, small(), update=UPDATE, progress=False, **PERIODS)
    assert again.lines == rolled[1].lines
