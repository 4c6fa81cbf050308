"""One rank and two are measured on the same training."""

import json
import runpy
import sys

import pytest

from benchmarks.speed import scale
from blossomrec.errors import BlossomRecError, ConfigError
from forked_commands import forked_ranks


def each_rank(module, *words):
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def test_as_many_events_for_each_rank_and_for_all(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(scale, "measure_collectives", lambda *given, out: told.append((given, out)))

    def by_forked_ranks(module, asked, count, device):
        """One needs no process of its own."""
        if count == 1:
            return scale.time_steps(scale.ScaleCase(**asked), device, scale.Ranks())
        found = tmp_path / "found.json"
        ranks = forked_ranks(count, each_rank, module, json.dumps(asked), device, str(found))
        assert all(one.code == 0 for one in ranks), ranks
        return json.loads(found.read_text())

    monkeypatch.setattr(scale, "by_ranks", by_forked_ranks)
    out = tmp_path / "scale.jsonl"
    scale.measure_scale(
        gpus=[1, 2], items=[300], lengths=[16], tokens=64, losses=["exact"], hidden_size=16,
        device="cpu", out=out,
    )  # fmt: skip
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert told == [((2, "cpu"), out)]
    assert [(line["gpus"], line["tokens_per_rank"]) for line in lines] == [
        (1, 64),
        (2, 64),
        (2, 32),
    ]
    one, *both = (line["table_mib"] for line in lines)
    # Weights, gradient, two moments and the average.
    assert one == pytest.approx(5 * 301 * 16 * 4 / 2**20, abs=0.06)
    assert both == [pytest.approx(one / 2, abs=0.06)] * 2
    assert all(line["events_per_second"] > 0 and line["peak_mib"] > 0 for line in lines)


def test_a_sampled_loss_keeps_no_gradient_of_all_items(monkeypatch):
    case = scale.ScaleCase(1, 1_000, 16, 64, "sampled", 64)
    monkeypatch.setitem(scale.LOSSES["sampled"], "negatives", 8)
    found = scale.time_steps(case, "cpu", scale.Ranks())
    # Weights, two moments, the average, and when each was up to date.
    assert found["table_mib"] == pytest.approx(1_001 * (4 * 64 * 4 + 8) / 2**20, abs=0.06)


def test_what_cannot_be_measured_is_named():
    with pytest.raises(ConfigError, match="no loss 'all': choose from exact, sampled"):
        scale.measure_scale(losses=["all"], device="cpu")
    with pytest.raises(BlossomRecError, match=r"(?s)failed: .*hidden_size is 7"):
        scale.measure_scale(
            gpus=[1], items=[50], lengths=[8], tokens=16, hidden_size=7, device="cpu"
        )
