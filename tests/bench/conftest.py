"""Measurements so short that they say nothing, in this process."""

import pytest

from blossomrec.bench import command, floor, timing


@pytest.fixture(autouse=True)
def brief(monkeypatch, one_thread):
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(floor, "COPIED", {"cpu": 1 << 16, "cuda": 1 << 20})
    monkeypatch.setattr(command, "alone", lambda function, *arguments: function(*arguments))
