"""Ranking is timed after it was compared with a sort, beside what it is compared with."""

import json

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.speed import ranking
from blossomrec.errors import BlossomRecError, ConfigError

SMALL = {"items": [700], "sizes": [16], "users": 9}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(ranking, "WARM_UP", 0)
    monkeypatch.setattr(ranking, "CALLS", 1)
    monkeypatch.setattr(ranking, "SEEN", 5)


def test_there_is_a_line_for_each_implementation(tmp_path):
    out = tmp_path / "lines.jsonl"
    ranking.measure_ranking(**SMALL, ks=[3, 20], dtypes=["float32"], out=out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    ours = [(each, k) for k in (3, 20) for each in (ranking.OURS, ranking.TOPK)]
    assert [(line["impl"], line["k"]) for line in lines] == [(ranking.PRODUCT, None), *ours, *ours]
    assert [line["filters"] for line in lines] == [False] * 5 + [True] * 4
    assert all(line["seconds"] > 0 and line["error"] < 1e-6 for line in lines)
    assert {(line["bench"], line["items"], line["hidden"]) for line in lines} == {
        ("ranking", 700, 16)
    }


@pytest.mark.parametrize("filtered", [False, True])
def test_both_ways_give_the_same_lists(filtered):
    problem = ranking.Problem.of(5, 400, 16, torch.float32, filtered, "cpu")
    rows, scores = problem.ours(7)
    others, expected = problem.topk(7)
    assert torch.equal(rows, others)
    assert torch.allclose(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", ["items", "scores"])
def test_nothing_is_timed_where_a_list_is_wrong(what, tmp_path, monkeypatch):
    original = ranking.ProductTopK.of

    def wrong(self, queries, left_out=None):
        rows, scores = original(self, queries, left_out)
        return (rows.roll(1, 0), scores) if what == "items" else (rows, scores + 1e-3)

    monkeypatch.setattr(ranking.ProductTopK, "of", wrong)
    with pytest.raises(BlossomRecError, match="scores of 700 items"):
        ranking.measure_ranking(**SMALL, ks=[3], dtypes=["float32"], out=tmp_path / "lines.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_type_is_refused():
    with pytest.raises(ConfigError, match="'int8': choose from float32, bfloat16"):
        ranking.measure_ranking(dtypes=["int8"])
