"""Measurements so short that they say nothing, in this process."""

import pytest

from benchmarks.speed import run_bench
from benchmarks.speed.instruments import floor, timing


@pytest.fixture(autouse=True)
def brief(monkeypatch, one_thread):
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(floor, "COPIED", {"cpu": 1 << 16, "cuda": 1 << 20})
    monkeypatch.setattr(run_bench, "alone", lambda function, *arguments: function(*arguments))
