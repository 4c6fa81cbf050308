"""What is timed is a step that works, with every input."""

import json

import pytest
import torch

from benchmarks.speed import input_cost


def test_each_form_is_timed_beside_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(input_cost, "STEPS", 10)
    monkeypatch.setattr(input_cost, "KEPT_EVENTS", input_cost.LENGTH)
    forms = {name: input_cost.FORMS[name] for name in ("ids", "all", "content")}
    monkeypatch.setattr(input_cost, "FORMS", forms)
    out = tmp_path / "inputs.jsonl"
    input_cost.measure_inputs(device="cpu", rounds=1, out=out)
    ids, whole = map(json.loads, out.read_text().splitlines())
    assert (ids["inputs"], ids["ratio"], whole["inputs"]) == ("ids", 1.0, "all")
    assert whole["ms"] > 0 and whole["measure"] == "one more event"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_training_step_is_timed_on_a_gpu(monkeypatch):
    monkeypatch.setattr(input_cost, "EVENTS", 4 * input_cost.LENGTH)
    assert input_cost._timer("cuda", dict(input_cost.FORMS["all"]))() > 0
