"""What is told of ranks that failed, by the kind of error that the first of them raised."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from blossomrec.errors import (
    ConfigError,
    DataError,
    NoEventsError,
    RunError,
    TrainingError,
    UnknownNameError,
)
from blossomrec.ranks import RankLostError
from blossomrec.training.ranks.launch import OURS, _tell, reported


def failure(message: str, exitcode: int = 1):
    return SimpleNamespace(
        exitcode=exitcode, pid=77, error_file_data={"message": {"message": message}}
    )


@pytest.mark.parametrize("kind", [ConfigError, DataError, RunError, TrainingError, RankLostError])
def test_an_error_of_a_rank_is_raised_as_what_it_is(kind):
    failures = {
        0: failure("RankLostError: rank 0 lost another rank: closed"),
        1: failure(f"{kind.__name__}: nothing to train on: choose another"),
    }
    if kind is RankLostError:
        del failures[0]
    with pytest.raises(kind) as raised:
        _tell(failures, "blossomrec train")
    assert type(raised.value) is kind
    told = "rank 1 failed: nothing to train on: choose another; to go on: blossomrec train"
    assert str(raised.value) == told


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UnknownNameError("backbone 'a'", "backbone", "group", ()), ConfigError),
        (NoEventsError("events.csv has no rows"), DataError),
    ],
)
def test_an_error_of_a_closer_kind_is_raised_as_what_it_is_one_of(
    tmp_path, monkeypatch, error, kind
):
    recorded = tmp_path / "error.json"
    for name, value in {
        "TORCHELASTIC_RUN_ID": f"{OURS}1",
        "TORCHELASTIC_ERROR_FILE": str(recorded),
        "WORLD_SIZE": "2",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit), reported():
        raise error
    failed = SimpleNamespace(exitcode=1, pid=77, error_file_data=json.loads(recorded.read_text()))
    with pytest.raises(kind) as raised:
        _tell({0: failed}, "again")
    assert type(raised.value) is kind
    assert str(raised.value) == f"rank 0 failed: {error}; to go on: again"


@pytest.mark.parametrize("message", ["KeyError: 'a'", ""])
def test_what_is_no_error_of_ours_is_a_lost_rank(message):
    with pytest.raises(RankLostError, match="rank 2 failed"):
        _tell({2: failure(message)}, "again")
    with pytest.raises(RankLostError, match=r"rank 3 was killed by SIGKILL \(process 77\)"):
        _tell({2: failure(message), 3: failure("", -9)}, "again")
