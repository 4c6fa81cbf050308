"""Shares of events in a score: against a dense reference, and where the cause is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from blossomrec.config import ModelConfig
from blossomrec.data.batch import pack
from blossomrec.errors import ConfigError
from blossomrec.explanation import layers
from blossomrec.explanation.explain import explain
from blossomrec.models import build_model
from blossomrec.report.attention_profile import recorded
from small_options import MODEL

ITEMS = 30
MODELS = {
    "plain": {},
    "two layers": {"layers": 2, "heads": 4, "kv_heads": 2},
    "pre-norm": {"layers": 2, "norm": "pre", "kv_heads": 2},
    "three layers, sinks": {"layers": 3, "sinks": 3, "top_n": 2, "compress": "mean"},
    "long": {"layers": 2, "paths": "long"},
    "short": {"layers": 2, "paths": "short", "sinks": 1},
    "union": {"layers": 2, "fusion": "union", "heads": 4, "kv_heads": 2, "top_n": 2},
    "union, pre-norm, sinks": {"layers": 2, "fusion": "union", "norm": "pre", "sinks": 3},
    "gated": {"layers": 2, "residual": "gated"},
    "gated, pre-norm": {"layers": 2, "residual": "gated", "norm": "pre", "feed_forward": "swiglu"},
    "swiglu": {"layers": 2, "feed_forward": "swiglu"},
}


def model_of(seed=0, **options):
    """A model whose weights are large enough for everything in it to matter."""
    torch.manual_seed(seed)
    config = {**MODEL, "max_len": 200, "hidden_size": 16, **options}
    model = build_model(ModelConfig(**config), ITEMS).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(0.3 * torch.randn_like(weight) if "embeddings" not in name else 0.0)
        model.item_embeddings.weight.mul_(20)
    return model


def visible(layer, selected, length):
    """Which events each event sees over the long path, [G, T, T], and over the short one."""
    attention = layer.attention
    event = torch.arange(length)
    distance = event[:, None] - event
    own = event[:, None] // attention.spec.block_size == event // attention.spec.block_size
    chosen = (selected[..., None] == event // attention.spec.block_size).any(2).transpose(0, 1)
    long = (own | chosen) & (distance >= 0)
    near = attention.spec.pattern.is_visible(distance.clamp(min=0)) | (event < attention.spec.sinks)
    near = (near & (distance >= 0)).expand_as(long)
    # Of a union each key belongs to one path.
    return long & ~near if attention.spec.is_union else long, near


def reference(model, rows, item):
    """The same shares by automatic differentiation of a dense model with everything held."""
    batch, length = pack([rows]), len(rows)
    cu_seqlens = batch.cu_seqlens
    leaf = x = model.embed(batch).detach().requires_grad_()
    through = []
    for layer in model.stack():
        attention = layer.attention
        given = held_norm(layer.attention_norm, x) if layer.pre_norm else x
        attended = attention(given.detach(), cu_seqlens)
        q, k, *_ = attention.project(given.detach(), cu_seqlens)
        v = attention.value(given).unflatten(-1, (attention.heads.keys, -1))
        repeat = attention.heads.per_group
        k, v = (each.repeat_interleave(repeat, 1).transpose(0, 1) for each in (k, v))
        scores = q.transpose(0, 1) @ k.mT / math.sqrt(attention.heads.size)
        out = 0
        masks = visible(layer, attended.selected, length)
        for weights, gate in paths_of(attention.spec, scores, attended.gates, masks):
            amount = torch.ones(length, requires_grad=True)
            through.append((amount, weights[:, -1].mean(0)))
            out = out + gate * (weights @ (v * amount[:, None]))
        x = held_layer(layer, x, attention.output(out.transpose(0, 1).flatten(1)))
    if isinstance(model.final_norm, nn.LayerNorm):
        x = held_norm(model.final_norm, x)
    score = x[-1] @ model.item_embeddings.weight[item].detach()
    amounts = [amount for amount, _ in through]
    gradient, *passed = torch.autograd.grad(score, [leaf, *amounts])
    weights = [each for _, each in through]
    return score.item(), (gradient * leaf).sum(-1).detach(), passed, weights


def paths_of(spec, scores, gates, masks):
    """Of each path the weights [H, T, T], each row one in sum or zero, and what they count."""
    masks = [seen.repeat_interleave(len(scores) // len(seen), 0) for seen in masks]
    gates = gates.detach().permute(1, 0, 2)
    if not spec.is_union:
        for path, seen in enumerate(masks):
            weights = scores.masked_fill(~seen, -math.inf).softmax(-1).detach()
            yield weights, gates[..., path, None]
        return
    biased = (scores + gates * masks[1]).masked_fill(~(masks[0] | masks[1]), -math.inf)
    joint = biased.softmax(-1).detach()
    for seen in masks:
        share = (joint * seen).sum(-1, keepdim=True)
        yield joint * seen / share.clamp(min=1e-30), share


def held_norm(norm, x):
    scale = x.var(-1, correction=0, keepdim=True).add(norm.eps).sqrt().detach()
    return (x - x.mean(-1, keepdim=True)) / scale * norm.weight + norm.bias


def held_layer(layer, x, attended):
    def feed_forward(x):
        inner = layer.inner(x)
        if isinstance(layer.activation, nn.GELU):
            return layer.outer(inner * (nn.functional.gelu(inner) / inner).detach())
        value, opening = inner.split(inner.shape[-1] // 2, -1)
        return layer.outer(value * nn.functional.silu(opening).detach())

    def gate(name, x):
        return torch.sigmoid(getattr(layer, name)(x)).detach() if layer.gated else 1.0

    x = x + gate("attention_gate", x) * attended
    if layer.pre_norm:
        added = feed_forward(held_norm(layer.feed_forward_norm, x))
        return x + gate("feed_forward_gate", x) * added
    x = held_norm(layer.attention_norm, x)
    added = gate("feed_forward_gate", x) * feed_forward(x)
    return held_norm(layer.feed_forward_norm, x + added)


@pytest.mark.parametrize("length", [1, 4, 63, 111])
@pytest.mark.parametrize("name", MODELS)
def test_shares_are_those_of_the_dense_reference(name, length, one_thread, monkeypatch):
    monkeypatch.setattr(layers, "TILE_ROWS", 7)
    model = model_of(**MODELS[name])
    rows = np.random.default_rng(length).integers(0, ITEMS, length)
    found = explain(model, rows, 3)
    score, shares, passed, weights = reference(model, rows, 3)
    query = model.queries(pack([rows]))
    assert found.score == pytest.approx(model.scores(query, 3, 4).item(), abs=1e-3)
    assert found.score == pytest.approx(score, abs=1e-3)
    assert found.contributions == pytest.approx(shares.numpy(), abs=1e-3)
    assert found.score == pytest.approx(found.contributions.sum() + found.rest, abs=1e-3)
    assert np.abs(found.contributions).max() > 0.01
    paths = [path for layer in found.layers for path in (layer.long, layer.short)]
    for path, wanted, attention in zip(paths, passed, weights, strict=True):
        assert path.contributions == pytest.approx(wanted.numpy(), abs=1e-3)
        assert path.weights == pytest.approx(attention.numpy(), abs=1e-5)


@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_selected_blocks_and_gates_are_those_of_the_model(fusion, one_thread):
    model = model_of(layers=2, heads=4, kv_heads=2, top_n=2, fusion=fusion)
    rows = np.random.default_rng(5).integers(0, ITEMS, 90)
    batch = pack([rows])
    with torch.no_grad(), recorded(model) as attended:
        layers = model.encode(batch, keep_layers=True).layers
    for found, layer, each in zip(explain(model, rows, 0).layers, layers, attended, strict=True):
        gates = each.shares(batch.cu_seqlens)[-1]
        assert found.gates == pytest.approx(gates.numpy(), abs=1e-5)
        assert fusion == "gated" or found.gates.sum(-1) == pytest.approx(1)
        listed = [block for block, heads in found.selected.items() for _ in range(heads)]
        assert listed == sorted(layer.selected[-1].flatten().tolist())
        assert found.kv_heads == 2


@pytest.mark.parametrize("options", [{"attention": "full"}, {"backbone": "gru4rec"}])
def test_other_models_are_refused(options):
    with pytest.raises(ConfigError, match="cannot be explained"):
        explain(model_of(**options), np.array([1, 2]), 0)


NOISE, CAUSES = 12, 3


def caused(rng, count, length=24):
    """Histories of noise with one cause somewhere, its place, and the item that it leads to."""
    histories = rng.integers(0, NOISE, (count, length))
    place, kind = rng.integers(0, length, count), rng.integers(0, CAUSES, count)
    histories[np.arange(count), place] = NOISE + kind
    return histories, place, NOISE + CAUSES + kind


@pytest.fixture(scope="module", params=["gated", "union"])
def trained(request):
    """A model that has learned that a cause, wherever it stands, decides what comes next."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = {**MODEL, "layers": 2, "hidden_size": 32, "top_n": 5, "window": 4, "dropout": 0.0}
    config["fusion"] = request.param
    model = build_model(ModelConfig(**config | {"max_len": 24}), NOISE + 2 * CAUSES)
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    rng = np.random.default_rng(0)
    for _ in range(300):
        histories, _, targets = caused(rng, 64)
        batch = pack(list(histories))
        hidden = model.encode(batch).hidden[23::24]
        loss = nn.functional.cross_entropy(
            hidden @ model.output_weight().T, torch.from_numpy(targets)
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.set_num_threads(threads)
    assert loss.item() < 0.1
    return model.eval()


def test_a_known_cause_comes_first(trained, one_thread):
    histories, places, targets = caused(np.random.default_rng(1), 60)
    explanations = [
        explain(trained, rows, int(item)) for rows, item in zip(histories, targets, strict=True)
    ]
    first = np.array([one.contributions.argmax() for one in explanations])
    # One softmax over everything tells more by whom it attends to, which is held fixed here; by
    # chance it would be one in 24.
    least = 0.95 if trained.config.fusion == "gated" else 0.6
    assert (first == places).mean() >= least


def test_removing_what_counts_most_changes_the_score_more(trained, one_thread):
    rng = np.random.default_rng(2)
    histories, _, targets = caused(rng, 40)
    most, others = [], []
    for rows, item in zip(histories, targets, strict=True):
        found = explain(trained, rows, int(item))
        order = np.argsort(-found.contributions)
        chosen = [order[:5], rng.choice(len(rows), 5, replace=False)]
        queries = trained.queries(pack([np.delete(rows, places) for places in chosen]))
        changes = np.abs(trained.scores(queries, item, item + 1)[:, 0].numpy() - found.score)
        most.append(changes[0])
        others.append(changes[1])
    assert np.mean(most) > 2.5 * np.mean(others)
