"""Both ways of ranking on a processor are timed after their lists were compared."""

import json

import pytest

from benchmarks.speed import quantised_ranking
from blossomrec.errors import BlossomRecError, ConfigError
from blossomrec.evaluation import quantised_top_k, scoring
from blossomrec.models.fused import quantised_items

MISSING = quantised_items.missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

ITEMS = quantised_top_k.LEAST_TILES * scoring.TILE_ITEMS + 64
SMALL = {"items": [ITEMS], "sizes": [8], "users": [2], "ks": [3]}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(quantised_ranking, "SECONDS", 0)
    monkeypatch.setattr(quantised_ranking, "LEAST", 1)


def test_there_is_a_line_for_each_case(tmp_path):
    out = tmp_path / "lines.jsonl"
    quantised_ranking.measure_quantised(**SMALL, out=out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    cases = [("even", False), ("even", True), ("uneven", False), ("uneven", True)]
    assert [(line["vectors"], line["filters"]) for line in lines] == cases
    assert all(line["seconds"] > 0 and line["float32_seconds"] > 0 for line in lines)
    assert all(line["copy_mib"] > 0 for line in lines)


def test_nothing_is_timed_where_a_list_is_another(tmp_path, monkeypatch):
    original = quantised_top_k.QuantisedTopK.of

    def wrong(self, *given):
        rows, scores = original(self, *given)
        return rows.flip(1), scores

    monkeypatch.setattr(quantised_top_k.QuantisedTopK, "of", wrong)
    with pytest.raises(BlossomRecError, match="are not the same"):
        quantised_ranking.measure_quantised(**SMALL, out=tmp_path / "lines.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_vectors_that_nobody_knows_are_refused():
    with pytest.raises(ConfigError, match="'odd': choose from even, uneven"):
        quantised_ranking.measure_quantised(vectors=["odd"])
