"""The benchmark of models over periods: its lines, going on, and what it can do without."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from jobs_in_this_process import run_jobs_here

from benchmarks.accuracy import rolling_study
from benchmarks.accuracy.accuracy_study import Preset
from benchmarks.accuracy.rolling_study import Dated, measure_rolling
from blossomrec.data.log import EventLog
from blossomrec.errors import BlossomRecError, ConfigError
from blossomrec.rolling.options import UpdateOptions

ROOT = Path(__file__).resolve().parents[3]
SMALL = {
    "hidden_size": 16,
    "layers": 1,
    "heads": 2,
    "kv_heads": 1,
    "inner_size": 16,
    "attention": "full",
}
FIELDS = {"dataset", "study", "model", "period", "strategy", "seconds", "metrics"}
FIELDS |= {"new_item_metrics", "hardware", "versions", "commit", "jobs", "update"}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Five days of thirty users, with whole numbers as ids."""
    rng, folder = np.random.default_rng(2), tmp_path_factory.mktemp("logs")
    users, count = np.repeat(np.arange(30), 20), 600
    frame = {"user_id": users, "item_id": rng.integers(0, 25, count) + 100}
    times = 1_700_006_400 + rng.integers(0, 5 * 86_400, count)
    EventLog.prepare(pl.DataFrame(frame | {"timestamp": times}), folder / "shop")
    return folder


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(rolling_study, "run_jobs", run_jobs_here)
    monkeypatch.setitem(rolling_study.ROLLED, "shop", Dated(Preset(10, 0.1, 256, epochs=1)))
    monkeypatch.setitem(rolling_study.MODELS, "BlossomRec", SMALL)


def measure(logs, folder, **options):
    given = {"datasets": ["shop"], "periods": 2, "update": UpdateOptions(epochs=1)} | options
    measure_rolling(logs, out=folder / "out.jsonl", runs=folder / "runs", **given)
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_a_line_for_each_period_and_strategy(logs, small, tmp_path, capsys):
    *lines, stale, update = measure(logs, tmp_path)
    assert [one["compared"] for one in (stale, update)] == ["stale", "update"]
    assert all(one["low"] <= one["ndcg_share"] <= one["high"] for one in (stale, update))
    found = [(line["period"], line["strategy"]) for line in lines]
    assert sorted(found) == [
        (number, strategy) for number in (1, 2) for strategy in ("retrain", "stale", "update")
    ]
    assert all(line.keys() >= FIELDS for line in lines)
    assert all(line["dataset"] == "shop" and line["targets"] > 50 for line in lines)
    assert "2 periods from" in capsys.readouterr().out
    # What there is, is not measured or written again; other options are another study.
    assert measure(logs, tmp_path) == [*lines, stale, update]
    more = measure(logs, tmp_path, strategies=["stale"], targets="first")
    assert more[:8] == [*lines, stale, update] and len(more) == 10
    assert len({line["study"] for line in more}) == 2


def test_chains_begin_with_other_seeds_beside_the_same_retrainings(logs, small, tmp_path):
    lines = measure(logs, tmp_path, chains=2)
    periods, compared = lines[:-4], lines[-4:]
    found = [(each.get("chain"), each["seed"], each["strategy"]) for each in periods]
    names = ("retrain", "stale", "update")
    assert sorted(found, key=str) == sorted(
        [(None, 0, each) for each in names * 2] + [(2, 1, each) for each in names[1:] * 2], key=str
    )
    first, second = ([each for each in periods if each.get("chain") == n] for n in (None, 2))
    assert {line["study"] for line in periods} == {first[0]["study"]}
    assert {line["metrics"]["ndcg@10"] for line in first} != {
        line["metrics"]["ndcg@10"] for line in second
    }
    assert [(each.get("chain"), each["compared"]) for each in compared] == [
        (n, each) for n in (None, 2) for each in names[1:]
    ]
    # Of the same retrainings.
    (base,) = (each for each in periods if (each["strategy"], each["period"]) == ("retrain", 2))
    (mine,) = (each for each in second if (each["strategy"], each["period"]) == ("update", 2))
    share = mine["metrics"]["ndcg@10"] / base["metrics"]["ndcg@10"]
    assert compared[3]["ndcg_share"] == pytest.approx(share, rel=1e-4)
    assert measure(logs, tmp_path, chains=2) == lines


def test_what_did_not_finish_is_named_and_done_in_the_next_call(logs, small, tmp_path, monkeypatch):
    def only_first(jobs, out, **options):
        return run_jobs_here(jobs[:1], out) + [str(job) for job in jobs[1:]]

    monkeypatch.setattr(rolling_study, "run_jobs", only_first)
    with pytest.raises(BlossomRecError, match="1 of 2 did not finish: shop, period 2, retrain"):
        measure(logs, tmp_path)
    monkeypatch.setattr(rolling_study, "run_jobs", run_jobs_here)
    lines = measure(logs, tmp_path)
    assert lines[5]["strategy"] == "retrain" and "compared" in lines[6]
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"datasets": ["none"]}, "'none' is not known"),
        ({"model": "none"}, "'none' is not known"),
        ({"jobs": 0}, "jobs is 0"),
        ({"chains": 0}, "chains is 0"),
        ({"strategies": ["best"]}, "'best'"),
        ({"periods": 0}, "periods is 0"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_begun(logs, small, tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        measure(logs, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


WITHOUT = """
from pathlib import Path
from benchmarks.accuracy import rolling_study as study
from benchmarks.accuracy.accuracy_study import Preset
from blossomrec.rolling.options import UpdateOptions

study.ROLLED["shop"] = study.Dated(Preset(10, 0.1, 256, epochs=1))
study.MODELS["BlossomRec"] = {small}
here = Path({folder!r})
study.measure_rolling(
    Path({logs!r}), out=here / "out.jsonl", runs=here / "runs", datasets=["shop"], periods=2,
    jobs=2, update=UpdateOptions(epochs=1),
)
"""


def test_neither_polars_nor_cyclopts_is_needed(logs, tmp_path):
    """Nor by the processes in which trainings run side by side."""
    without = tmp_path / "without"
    without.mkdir()
    for name in ("polars", "cyclopts"):
        (without / f"{name}.py").write_text("raise ImportError('it is not installed here')\n")
    script = tmp_path / "script.py"
    body = WITHOUT.format(small=SMALL, folder=str(tmp_path), logs=str(logs))
    body = body.replace("\n", "\n    ")
    script.write_text(f"def main():{body}\n\nif __name__ == '__main__':\n    main()\n")
    path = os.pathsep.join([str(without), str(ROOT / "src"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 8 and {line["jobs"] for line in lines[:6]} == {2}
