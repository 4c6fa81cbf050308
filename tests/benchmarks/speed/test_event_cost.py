"""What is timed is an event that every model takes on."""

import json

from benchmarks.speed import event_cost


def test_every_model_is_timed_beside_blossom(tmp_path, monkeypatch):
    monkeypatch.setattr(event_cost, "STEPS", 3)
    out = tmp_path / "events.jsonl"
    event_cost.measure_events(lengths=[40], rounds=1, out=out)
    found = {line["model"]: line for line in map(json.loads, out.read_text().splitlines())}
    assert set(found) == set(event_cost.MODELS)
    assert found["BlossomRec"]["ratio"] == 1
    assert all(line["ms"] > 0 and line["length"] == 40 for line in found.values())
