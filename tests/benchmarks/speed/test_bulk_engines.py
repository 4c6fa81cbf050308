"""Processor time of all that a command starts, and the table of engines."""

import importlib.util
import json
import subprocess
import sys

import pytest

from benchmarks.speed import bulk_engines
from benchmarks.speed.bulk_engines import measure_engines
from benchmarks.speed.bulk_rate import BulkSize
from benchmarks.speed.instruments.processor import run_counted
from benchmarks.tables import data_tables

# Starts another that computes for so long a time of a processor, and waits for it.
COMPUTES = "import time\nwhile time.process_time() < 1: pass"
STARTS = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {COMPUTES!r}])"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_processes_that_a_command_starts_are_counted():
    seconds, processor = run_counted([sys.executable, "-c", STARTS])
    assert processor > 0.5
    assert seconds > 0
    with pytest.raises(subprocess.CalledProcessError):
        run_counted([sys.executable, "-c", "raise SystemExit(3)"])


def engine_line(engine, seconds, processor_seconds, **others):
    size = {"users": 5_000, "items": 900, "k": 10}
    about = {"bench": "bulk engines", "engine": engine, "threads": 2, "runs": 3, "load": 0.5}
    time = {"seconds": seconds, "processor_seconds": processor_seconds}
    return size | about | time | others


def test_the_last_lines_of_a_size_are_compared(monkeypatch):
    lines = [
        {"bench": "bulk", "rules": "none"},
        engine_line("local", 99.0, 99.0),
        engine_line("ray", 99.0, 99.0),
        engine_line("local", 40.0, 80.0),
        engine_line("ray", 42.0, 88.0),
        engine_line("local", 1.0, 1.0, users=7),
    ]
    monkeypatch.setattr(data_tables, "read", lambda name: lines)
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in data_tables.bulk_engines().splitlines()[2:]
    ]
    known = ["5,000", "900", "10", "2", "3", "0.5"]
    assert rows[0] == ["local", *known, "40.0", "80.0", "1.00", "1.00"]
    assert rows[1] == ["ray", *known, "42.0", "88.0", "1.05", "1.10"]
    assert len(rows) == 3


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs the package ray (extra: ray)"
)
def test_both_engines_are_measured(tmp_path):
    out = tmp_path / "bulk.jsonl"
    measure_engines(size=BulkSize(users=50, items=200, events=5), runs=1, out=out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["engine"] for line in lines] == ["local", "ray"]
    assert all(line["users"] == 50 and line["processor_seconds"] > 0 for line in lines)


def test_no_runs_begin_that_would_last_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(bulk_engines, "check_engine", lambda name: None)
    monkeypatch.setattr(bulk_engines, "random_run", lambda size, folder: None)
    monkeypatch.setattr(bulk_engines, "run_counted", lambda command: (100.0, 150.0))
    for minutes, runs in ((1, 1), (60, 3)):
        out = tmp_path / f"{minutes}.jsonl"
        measure_engines(size=BulkSize(users=50), minutes=minutes, out=out)
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["seconds_each"] for line in lines] == [[100.0] * runs] * 2
