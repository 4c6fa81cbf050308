"""The tables of models over periods, from lines whose answers are known."""

import pytest
from markdown_cells import cells

from benchmarks.tables import pages, rolling_tables


def line(period, strategy, value, seconds, *, study="a", targets=10, new=0):
    metrics = {"ndcg@10": value, "hr@10": 2 * value} if targets else {}
    return {
        "dataset": "films",
        "model": "BlossomRec",
        "study": study,
        "period": period,
        "period_length": "1d",
        "strategy": strategy,
        "seconds": seconds,
        "targets": targets,
        "new_item_targets": new,
        "old_item_targets": targets - new,
        "metrics": metrics,
        "new_item_metrics": {"ndcg@10": 0.01, "hr@10": 0.02} if new else {},
        "old_item_metrics": metrics,
        "hardware": "a machine",
        "versions": {"python": "3.11", "torch": "2.13"},
    }


LINES = [
    # An earlier study, a line that was measured again, and one of another benchmark.
    line(1, "stale", 0.9, 1.0, study="b"),
    line(1, "retrain", 0.9, 7.0),
    {"bench": "append", "seconds": 1.0},
    {"study": "a", "compared": "update", "ndcg_share": 0.95, "low": 0.9, "high": 1.01},
    line(1, "retrain", 0.2, 8.0),
    line(2, "retrain", 0.4, 10.0, targets=30),
    line(7, "retrain", 0.5, 30.0, targets=0),
    line(1, "update", 0.2, 0.0),
    line(2, "update", 0.38, 2.0, targets=30, new=5),
    line(7, "update", 0.5, 0.0, targets=0),
]


@pytest.fixture
def measured(monkeypatch, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "growth.jsonl").touch()
    monkeypatch.setattr(rolling_tables, "ROOT", tmp_path)
    monkeypatch.setattr(rolling_tables, "read", lambda name: LINES)


def test_totals_stand_beside_those_of_retraining(measured):
    name = "films: BlossomRec, 3 x 1d"
    update = ["40", "5", "0.6700", "0.3350", "0.0100", "0.3286", "1.0"]
    update += ["95.0% (90.0% to 101.0%)", "5.0%"]
    retrain = ["40", "0", "0.7000", "0.3500", "", "0.3500", "20.0", "100.0%", "100.0%"]
    assert cells(rolling_tables.totals()) == [
        [f"{name}: update", *update],
        [f"{name}: retrain", *retrain],
    ]


def test_periods_are_put_together(measured):
    assert cells(rolling_tables.over_time()) == [
        ["films: BlossomRec: 1 to 5", "", "0.3350", "0.3500"],
        ["films: BlossomRec: 6 to 7", "", "", ""],
    ]


def test_chains_of_a_study_stand_beside_the_same_retrainings(measured, monkeypatch):
    assert rolling_tables.chains() == ""
    again = [line(1, "stale", 0.2, 8.0), line(2, "stale", 0.4, 0.0, targets=30)]
    again += [line(1, "update", 0.1, 0.0), line(2, "update", 0.3, 4.0, targets=30)]
    first = [line(1, "stale", 0.3, 8.0), line(2, "stale", 0.32, 0.0, targets=30)]
    lines = [*LINES, *first, *(each | {"chain": 2} for each in again)]
    monkeypatch.setattr(rolling_tables, "read", lambda name: lines)
    assert cells(rolling_tables.chains()) == [
        ["films: BlossomRec: 1", "2", "80.0%", "95.0% (90.0% to 101.0%)", "5.0%"],
        ["films: BlossomRec: 2", "1", "100.0%", "75.0%", "40.0%"],
        ["films: BlossomRec: mean", "", "90.0%", "85.0%", "22.5%"],
    ]
    # Elsewhere the first one counts.
    assert cells(rolling_tables.totals())[1][:5] == [
        "films: BlossomRec, 3 x 1d: update",
        "40",
        "5",
        "0.6700",
        "0.3350",
    ]


def test_nothing_is_shown_of_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(rolling_tables, "ROOT", tmp_path)
    assert rolling_tables.totals() == rolling_tables.over_time() == ""


def test_machines_are_told(measured):
    assert "- a machine: Python 3.11, torch 2.13\n" in pages.hardware()
