"""Candidates for the selector: each runs, learns what it should, and does so again."""

import dataclasses

import pytest
import torch

from benchmarks.selector.recall_measures import as_numbers, measure_recall
from benchmarks.selector.recall_options import RecallTraining
from benchmarks.selector.recall_training import train_recall
from benchmarks.selector.selector_candidates import CANDIDATES, build_candidate
from blossomrec.attention import BlossomAttention
from blossomrec.config import ModelConfig
from blossomrec.errors import ConfigError
from blossomrec.models.transformer import TransformerLayer

CPU = torch.device("cpu")
MODEL = ModelConfig(hidden_size=32, heads=4, kv_heads=2, inner_size=32, norm="pre", dropout=0.0)
TINY = RecallTraining(
    length=128,
    items=64,
    cue_items=16,
    tokens_per_batch=512,
    first_steps=3,
    stage_steps=3,
    last_steps=3,
)


def candidate(name: str, **options):
    torch.manual_seed(0)
    return build_candidate(name, dataclasses.replace(MODEL, **options), 64)


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_candidate_trains_and_is_measured(name):
    model = candidate(name)
    before = {key: value.clone() for key, value in model.named_parameters()}
    trained = train_recall(model, TINY, device=CPU)
    measures = trained.measures
    assert (measures.length, trained.steps, trained.finished) == (128, 6, True)
    assert list(trained.gradient_norms) == [64, 128]
    for part, norm in trained.gradient_norms[128].items():
        assert (norm == 0) == (name == "mlp-frozen" and part == "attention.compress"), part
    assert 0 <= measures.accuracy <= 1
    assert (measures.recall_any is None) == (name == "full")
    assert as_numbers(measures)["accuracy"] == pytest.approx(measures.accuracy, abs=1e-4)
    for key, parameter in model.named_parameters():
        still = name == "mlp-frozen" and ".compress." in key
        assert torch.equal(parameter, before[key]) == still, key


def test_training_is_repeatable():
    first, second = (train_recall(candidate("mlp"), TINY, device=CPU) for _ in range(2))
    assert first == second


def test_training_stops_when_its_time_is_up():
    trained = train_recall(candidate("mlp"), dataclasses.replace(TINY, seconds=0.0), device=CPU)
    assert (trained.measures.length, trained.steps, trained.finished) == (64, 0, False)


def test_the_rate_falls_with_the_steps_or_with_the_time(monkeypatch):
    rates, clock = [], iter(range(1_000))
    step = torch.optim.AdamW.step

    def spy(self, *args):
        rates.append(float(self.param_groups[0]["lr"]))
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    options = {"length": 64, "warmup_steps": 1, "learning_rate": 1.0, "last_steps": 8}
    training = dataclasses.replace(TINY, **options)
    by_steps = train_recall(candidate("mlp"), training, device=CPU)
    assert rates == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    rates.clear()
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    training = dataclasses.replace(training, last_steps=1_000, seconds=15)
    by_time = train_recall(candidate("mlp"), training, device=CPU)
    # Each step looks at the clock twice.
    assert rates == pytest.approx([1, 1, 1, 1, 12 / 15, 8 / 15, 4 / 15, 0.1])
    assert (by_steps.finished, by_time.finished) == (True, False)
    assert list(by_time.gradient_norms) == [64]


def test_the_control_form_has_nothing_far_away():
    control = dataclasses.replace(TINY, control=True)
    task, far = (each.task(128, 20, 0) for each in (control, TINY))
    assert (task.position - task.planted <= 16).all() and control.distance == "1-16"
    assert (far.position - far.planted >= 44).all() and TINY.distance == "44-88"
    measures = measure_recall(candidate("mlp"), control, 128, CPU)
    assert measures.length == 128 and measures.selection is not None


def attention_of(model) -> BlossomAttention:
    return next(each.attention for each in model.modules() if isinstance(each, TransformerLayer))


def test_straight_through_changes_gradients_only():
    shipped, gated = (
        attention_of(candidate("mlp", fusion="gated")),
        attention_of(candidate("mlp-gated")),
    )
    gated.load_state_dict(shipped.state_dict())
    cu_seqlens = torch.arange(0, 401, 200, dtype=torch.int32)
    x = torch.randn(400, 32)
    expected, given = (
        each(x, cu_seqlens, distil_rows=torch.arange(400)) for each in (shipped, gated)
    )
    torch.testing.assert_close(given.hidden, expected.hidden)
    assert given.selector_loss is None
    given.hidden.square().sum().backward()
    assert all(each.grad.norm() > 0 for each in gated.compress.parameters())


def test_the_compressed_branch_sees_earlier_blocks_only():
    branch = attention_of(candidate("mlp-branch"))
    cu_seqlens = torch.tensor([0, 200], dtype=torch.int32)
    x = torch.randn(200, 32)
    before = branch(x, cu_seqlens).hidden
    x[150:] += 1.0
    after = branch(x, cu_seqlens).hidden
    torch.testing.assert_close(after[:150], before[:150])
    assert (after[150:] - before[150:]).abs().min() > 0


def test_detached_distillation_leaves_queries_and_keys():
    detached = attention_of(candidate("mlp-detached"))
    cu_seqlens = torch.tensor([0, 200], dtype=torch.int32)
    given = detached(torch.randn(200, 32), cu_seqlens, distil_rows=torch.arange(200))
    given.selector_loss.backward()
    reached = {name.split(".")[0] for name, p in detached.named_parameters() if p.grad is not None}
    assert reached == {"compress"}


def test_densely_distilled_events_see_everything_in_training_alone():
    shipped = attention_of(candidate("mlp", paths="long"))
    dense = attention_of(candidate("mlp-dense", paths="long"))
    dense.load_state_dict(shipped.state_dict())
    everything = attention_of(candidate("mlp", paths="long", top_n=12))
    everything.load_state_dict(shipped.state_dict())
    cu_seqlens = torch.arange(0, 401, 200, dtype=torch.int32)
    x, rows = torch.randn(400, 32), torch.tensor([150, 199, 210, 399])
    expected, given = shipped(x, cu_seqlens), dense(x, cu_seqlens, distil_rows=rows)
    full = everything(x, cu_seqlens)
    torch.testing.assert_close(given.hidden[rows], full.hidden[rows])
    others = torch.ones(400, dtype=torch.bool).index_fill(0, rows, False)
    torch.testing.assert_close(given.hidden[others], expected.hidden[others])
    assert torch.equal(given.selected, expected.selected)
    torch.testing.assert_close(dense(x, cu_seqlens).hidden, expected.hidden)
    dense.eval()
    torch.testing.assert_close(dense(x, cu_seqlens, distil_rows=rows).hidden, expected.hidden)


def test_an_unknown_candidate_is_named():
    with pytest.raises(ConfigError, match="candidate 'max' is not known: choose from full"):
        candidate("max")
