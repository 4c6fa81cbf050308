"""The queue of trainings: order, failures and the end of time."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.job_queue import run_jobs


@dataclass(frozen=True)
class Task:
    """Takes a while and says where and when it ran."""

    name: str
    needs: float = 0.0
    takes: float = 0.0
    fails: bool = False

    def __str__(self) -> str:
        return self.name

    def run(self, device: torch.device, seconds: float) -> list[dict]:
        assert torch.get_num_threads() == 1 and seconds > 0
        if self.fails:
            raise RuntimeError("out of luck")
        time.sleep(self.takes)
        return [{"name": self.name, "process": os.getpid(), "device": device.type}]


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("together", [1, 2])
def test_all_jobs_run_although_one_fails(tmp_path, capfd, together):
    jobs = [Task("first"), Task("bad", fails=True), Task("second"), Task("third")]
    out = tmp_path / "lines.jsonl"
    assert run_jobs(jobs, out, together=together) == ["bad"]
    found = lines(out)
    assert sorted(line["name"] for line in found) == ["first", "second", "third"]
    assert os.getpid() not in {line["process"] for line in found}
    if together == 1:
        assert [line["name"] for line in found] == ["first", "second", "third"]
    printed = capfd.readouterr()
    assert "bad: failed" in printed.out and "out of luck" in printed.err


def test_time_ends_it(tmp_path):
    jobs = [
        Task("long", needs=1e6),
        Task("short"),
        Task("endless", takes=1e6),
        Task("after", needs=0),
    ]
    out, began = tmp_path / "lines.jsonl", time.monotonic()
    assert run_jobs(jobs, out, seconds=20) == ["long", "endless", "after"]
    assert time.monotonic() - began < 60
    assert [line["name"] for line in lines(out)] == ["short"]


def test_no_jobs(tmp_path):
    assert run_jobs([], tmp_path / "lines.jsonl") == []
