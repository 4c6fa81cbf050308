"""Collectives of two ranks that are processes, and what leaves a rank."""

import json

import pytest

from benchmarks.speed import collectives


def test_what_leaves_a_rank_of_several():
    found = [collectives.leaving(name, 4) for name in collectives.COLLECTIVES]
    assert found == [0.75, 0.75, 1.5, 0.75]


def test_a_line_for_each_collective_and_size(tmp_path):
    out = tmp_path / "scale.jsonl"
    collectives.measure_collectives(2, "cpu", mib=(0.125, 0.25), out=out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    names = [(line["mib"], line["collective"]) for line in lines]
    assert names == [(mib, name) for mib in (0.125, 0.25) for name in collectives.COLLECTIVES]
    for line in lines:
        share = collectives.leaving(line["collective"], 2)
        rate = share * line["mib"] * 2**20 / (1e-6 * line["microseconds"]) / 1e9
        assert line["gb_per_second"] == pytest.approx(rate, rel=0.02, abs=1e-3)
        assert {"hardware", "versions", "commit"} <= set(line) and line["gpus"] == 2
