"""What is timed is a step that trains, in every form."""

import json

import pytest
import torch

from benchmarks.speed import sampled_step
from blossomrec.config import TrainingConfig
from blossomrec.errors import ConfigError

SIZE = {"items": 500, "events": 96, "length": 32, "hidden_size": 16}


@pytest.mark.parametrize("form", sampled_step.FORMS)
def test_a_step_changes_the_items_it_is_about(form, one_thread):
    training = TrainingConfig(device="cpu", negatives=16, **sampled_step.FORMS[form])
    step, model = sampled_step.training_step(SIZE, training)
    weight = model.item_embeddings.weight
    start = weight.detach().clone()
    step(), step()
    moved = (weight != start).any(1).sum()
    # By the exact loss all of them, by the others those of the batch and of the sample.
    assert moved == 500 if form == "exact" else 50 < moved < 300


def test_each_form_has_a_line_for_each_number_of_negatives(tmp_path, monkeypatch):
    monkeypatch.setattr(sampled_step, "alone", lambda function, *given: function(*given))
    out = tmp_path / "steps.jsonl"
    sampled_step.measure_sampled_step(
        items=300, events=64, length=32, hidden_size=16, negatives=[4, 8],
        forms=["exact", "sampled, lazy_adamw"], rounds=1, device="cpu", out=out,
    )  # fmt: skip
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["form"], line["negatives"]) for line in lines] == [
        ("exact", None), ("sampled, lazy_adamw", 4), ("sampled, lazy_adamw", 8)
    ]  # fmt: skip
    assert all(line["ms"] > 0 and line["peak_mib"] > 0 and line["items"] == 300 for line in lines)
    with pytest.raises(ConfigError, match="no form 'best': choose from exact"):
        sampled_step.measure_sampled_step(forms=["best"], out=out)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", sampled_step.FORMS)
def test_a_step_is_captured_on_a_gpu(form):
    size = {"items": 5_000, "events": 512, "length": 128, "hidden_size": 128}
    training = {"negatives": 64, **sampled_step.FORMS[form]}
    assert sampled_step.measured(size, training, 1, "cuda")["ms"] > 0
