"""Where the time of a step goes: what is launched counts for its part, backward as forward."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks.speed import step_parts
from blossomrec.config import TrainingConfig
from blossomrec.errors import ConfigError

SIZE = {"items": 500, "events": 96, "length": 32, "hidden_size": 16}


def event(name, start, *, parent=None, number=-1, kernels=(), took=0):
    return SimpleNamespace(
        name=name,
        cpu_parent=parent,
        sequence_nr=number,
        kernels=[SimpleNamespace(duration=each) for each in kernels],
        self_cpu_time_total=took,
        time_range=SimpleNamespace(start=start),
    )


def test_kernels_count_for_the_part_whose_operation_they_are_of():
    step = event("part: optimizer", 0)
    inputs = event("part: inputs", 1, parent=step)
    attention = event("part: attention", 2, parent=inputs)
    gradient = event(f"{step_parts.BACKWARD}: MmBackward0", 9, parent=step, number=7)
    unknown = event(f"{step_parts.BACKWARD}: AccumulateGrad", 10, parent=step)
    events = [
        # An operation without gradients has the number of the next one that has some.
        event("aten::arange", 1.5, parent=inputs, number=7, kernels=[1.0], took=10),
        event("aten::mm", 3, parent=attention, number=7, kernels=[2.0, 4.0], took=20),
        event("aten::mm", 9.5, parent=gradient, kernels=[8.0], took=40),
        event("aten::add_", 10.5, parent=unknown, kernels=[16.0], took=80),
        event("aten::_fused_adamw_", 12, parent=step, kernels=[32.0], took=160),
        event("cudaDeviceSynchronize", 20, took=320),
        *(step, inputs, attention, gradient, unknown),
    ]
    parts = {"inputs": 1.0, "attention": 14.0, "other": 16.0, "optimizer": 32.0}
    assert step_parts.totals_by_part(events[::-1], on_gpu=True) == parts
    parts = {"inputs": 10, "attention": 60, "other": 400, "optimizer": 160}
    assert step_parts.totals_by_part(events, on_gpu=False) == parts


@pytest.mark.parametrize("form", ["exact", "sampled, lazy_adamw"])
def test_a_step_that_trains_has_every_part(form, one_thread):
    training = TrainingConfig(device="cpu", negatives=16, **step_parts.FORMS[form])
    parts = step_parts.parts_of_step(SIZE, training, 1)
    assert set(parts) <= set(step_parts.PARTS)
    known = set(step_parts.PARTS) - {step_parts.OTHER}
    assert all(parts[name] > 0 for name in known)
    # Nearly all that is done backward is known to be the gradient of a part.
    assert parts[step_parts.OTHER] < sum(parts.values()) / 4


def test_each_case_has_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(step_parts, "alone", lambda function, *given: function(*given))
    small = {name: value for name, value in SIZE.items() if name != "hidden_size"}
    monkeypatch.setattr(step_parts, "CASES", {"small": (small, "exact"), "other": (small, "exact")})
    out = tmp_path / "parts.jsonl"
    step_parts.measure_parts(cases=["small"], hidden_size=16, steps=1, device="cpu", out=out)
    (line,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (line["bench"], line["case"], line["items"], line["steps"]) == (
        "step parts",
        "small",
        500,
        1,
    )
    assert line["ms"] > 0 and list(line["parts_ms"]) == list(step_parts.PARTS)
    with pytest.raises(ConfigError, match="no case 'large': choose from small; other"):
        step_parts.measure_parts(cases=["large"], out=out)
    with pytest.raises(ConfigError, match="steps is 0"):
        step_parts.measure_parts(steps=0, out=out)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_of_a_step_on_a_gpu_are_of_parts():
    size = {"items": 5_000, "events": 512, "length": 128, "hidden_size": 128}
    found = step_parts.measured(size, "exact", 1, "cuda")
    assert all(found["parts_ms"][name] > 0 for name in step_parts.PARTS[:5])
