"""A step of a recall training: its batches, and that nothing in it waits for a device."""

import dataclasses

import pytest
import torch

from benchmarks.selector.recall_options import RecallTraining
from benchmarks.selector.recall_step import BATCHES, RecallStep, optimizer_of, stage_batches
from benchmarks.selector.recall_training import gradient_norms, train_recall
from benchmarks.selector.selector_candidates import CANDIDATES, build_candidate
from blossomrec.attention import layer as attention_layer
from blossomrec.config import ModelConfig
from waiting import Waits

CPU = torch.device("cpu")
MODEL = ModelConfig(hidden_size=32, heads=4, kv_heads=2, inner_size=32, norm="pre", dropout=0.0)
TINY = RecallTraining(length=128, items=64, cue_items=16, tokens_per_batch=512)


def made(name="mlp", training=TINY, config=MODEL, graph=True, device=CPU):
    torch.manual_seed(0)
    model = build_candidate(name, config, 64).to(device)
    if not CANDIDATES[name].distilled:
        training = dataclasses.replace(training, selector_weight=0.0)
    optimizer = optimizer_of(model, training, device)
    step = RecallStep(model, optimizer, training, 128, graph=graph, device=device)
    return model, step


def test_batches_are_histories_with_their_queries():
    numbers = next(stage_batches(TINY, 128, 3))
    whole = TINY.task(128, BATCHES * 4, 3)
    assert numbers.shape == (BATCHES, 512 + 2 * 8)
    for number, batch in enumerate(numbers.numpy()):
        task = whole.take(4 * number, 4 * number + 4)
        items, rows, answers = batch[:512], batch[512:520], batch[520:]
        assert (items == task.items.ravel()).all()
        assert (rows == task.rows).all() and (answers == task.answers).all()


def without_waiting(q, k, v, block_keys, gates, cu_seqlens, spec, *, impl):
    """Stands for the kernels: as they do, it gives a gradient to all four."""
    keys, values = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    out = (q * keys).sum(-1, keepdim=True).sigmoid() * values * gates.sum(-1, keepdim=True)
    return out, torch.zeros(len(q), k.shape[1], spec.top_n, dtype=torch.int32)


GRAPHS = [name for name, each in CANDIDATES.items() if each.graph and name != "full"]


@pytest.mark.parametrize("name", GRAPHS)
def test_no_step_waits_for_the_device(monkeypatch, name):
    monkeypatch.setattr(attention_layer, "blossom_attention", without_waiting)
    # C++ on a processor may look at its numbers: nothing is waited for.
    model, step = made(name, config=dataclasses.replace(MODEL, attention_impl="torch"))
    batches = next(stage_batches(TINY, 128, 0))
    step(batches[0])  # whose first-time work may wait
    before = model.item_embeddings.weight.clone()
    with Waits() as waits:
        step(batches[1])
    assert waits.found == []
    assert not torch.equal(model.item_embeddings.weight, before)
    assert float(step.loss) > 0 and float(step.norm) > 0


def test_waits_are_found():
    with Waits() as waits:
        x = torch.arange(4)
        x.sum().item(), x[x > 1], x.nonzero()
    assert waits.found[0] == "_local_scalar_dense" and len(waits.found) >= 3


def test_gradient_norms_are_those_before_clipping():
    model, step = made(training=dataclasses.replace(TINY, selector_weight=100.0))
    step(next(stage_batches(TINY, 128, 0))[0])
    norms = gradient_norms(model, float(step.norm))
    assert step.norm > 1
    assert sum(each**2 for each in norms.values()) ** 0.5 == pytest.approx(float(step.norm))


def test_more_blocks_are_selected_early(monkeypatch):
    training = dataclasses.replace(TINY, early_top_n=16, early_steps=10)
    selected = [training.selected(4, 128, since) for since in (0, 4, 5, 9, 10, 11)]
    assert selected == [16, 16, 8, 8, 4, 4]
    assert training.selected(4, 64, 0) == TINY.selected(4, 128, 0) == 4
    model, _ = made()
    seen, attend = [], attention_layer.blossom_attention

    def spy(*given, impl):
        if torch.is_grad_enabled():
            seen.append(given[-1].top_n)
        return attend(*given, impl=impl)

    monkeypatch.setattr(attention_layer, "blossom_attention", spy)
    steps = {"first_steps": 1, "last_steps": 4, "early_top_n": 8, "early_steps": 3}
    train_recall(model, dataclasses.replace(TINY, **steps), device=CPU)
    assert seen == 2 * [4] + 6 * [8] + 2 * [4]
    assert all(layer.attention.spec.top_n == 4 for layer in model.layers)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", [*GRAPHS, "full"])
def test_a_graph_does_what_its_operations_do(name):
    losses, device = [], torch.device("cuda")
    config = ModelConfig(norm="pre", dropout=0.0)
    for graph in (False, True):
        _, step = made(name, config=config, graph=graph, device=device)
        losses.append([])
        for batch in next(stage_batches(TINY, 128, 0))[:10].to(device):
            step(batch)
            losses[-1].append(float(step.loss))
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
