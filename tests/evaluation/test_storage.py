import json

import numpy as np
import pytest

from blossomrec.config import EvaluationConfig
from blossomrec.data.split import make_split
from blossomrec.errors import RunError
from blossomrec.evaluation import RankingOptions, compare, evaluate
from blossomrec.evaluation.evaluation import load_evaluation, save_evaluation
from ranking_oracle import DotScorer


@pytest.fixture(scope="module")
def evaluations(tiny_log):
    cases = make_split(tiny_log, EvaluationConfig()).test
    scorer = DotScorer(tiny_log.num_items)
    return {
        ranking: evaluate(
            scorer,
            tiny_log,
            cases,
            RankingOptions(ranking=ranking, filter_seen=True, split="leave-one-out"),
        )
        for ranking in ("full", "uni100")
    }


@pytest.mark.parametrize("ranking", ["full", "uni100"])
def test_what_is_read_is_what_was_saved(evaluations, ranking, tmp_path):
    saved = evaluations[ranking]
    save_evaluation(saved, tmp_path / "new" / "metrics.json")
    loaded = load_evaluation(tmp_path / "new" / "metrics.json")
    assert loaded.protocol == saved.protocol
    assert loaded.metrics == saved.metrics
    assert loaded.intervals == saved.intervals
    assert loaded.slices == saved.slices
    assert compare(loaded, saved)[f"{saved.protocol.prefix}mrr@10"].difference == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "metrics.json",
        "metrics.npz",
    ]


def test_the_json_tells_what_was_measured(evaluations, tmp_path):
    save_evaluation(evaluations["uni100"], tmp_path / "metrics.json")
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["protocol"]["split"] == "leave-one-out"
    assert written["protocol"]["ks"] == [5, 10, 20]
    assert written["protocol"]["sampled"] == [20, 77]
    assert "20 to 77 items that the user never met" in written["protocol"]["candidates"]
    assert set(written["intervals"]) == set(written["metrics"])
    assert sum(part["users"] for part in written["slices"]) == written["protocol"]["num_users"]
    low, high = written["intervals"]["uni20-77_hr@10"]
    assert low <= written["metrics"]["uni20-77_hr@10"] <= high


def test_what_is_missing_or_damaged_is_named(evaluations, tmp_path):
    path = tmp_path / "metrics.json"
    with pytest.raises(RunError, match=r"metrics\.json"):
        load_evaluation(path)
    save_evaluation(evaluations["full"], path)
    ranks = (tmp_path / "metrics.npz").read_bytes()
    save_evaluation(evaluations["uni100"], path)
    (tmp_path / "metrics.npz").write_bytes(ranks)
    with pytest.raises(RunError, match="does not belong"):
        load_evaluation(path)
    (tmp_path / "metrics.npz").unlink()
    with pytest.raises(RunError, match=r"metrics\.npz"):
        load_evaluation(path)
    path.write_text('{"format": 1}')
    with pytest.raises(RunError, match="damaged"):
        load_evaluation(path)
    path.write_text('{"format": 99}')
    with pytest.raises(RunError, match="format 99"):
        load_evaluation(path)
    with pytest.raises(RunError, match=r"end in \.json"):
        save_evaluation(evaluations["full"], tmp_path / "metrics")


def test_nothing_pickled_is_read(evaluations, tmp_path):
    path = tmp_path / "metrics.json"
    save_evaluation(evaluations["full"], path)
    with np.load(tmp_path / "metrics.npz", allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored.files)
