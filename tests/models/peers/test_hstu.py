"""HSTU against its definition event by event, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peer_inputs import LENGTHS, bounds_of, draw

from blossomrec.data.batch import pack
from blossomrec.data.history import History
from blossomrec.models.event_inputs import gap_buckets
from blossomrec.models.peers import hstu
from blossomrec.models.peers.hstu import HSTUAttention
from small_models import random_histories, small_model
from whole_history import relative_error

forms = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])


def layer_of(causal=True, times=True) -> HSTUAttention:
    torch.manual_seed(0)
    layer = HSTUAttention(hidden_size=8, num_heads=2, causal=causal, times=times).double()
    with torch.no_grad():
        for bias in (layer.position_bias, layer.time_bias):
            if bias is not None:
                bias.weight.normal_()
    return layer


def moments(total):
    """Seconds, some of which are not known."""
    seconds = torch.randint(0, 10_000_000, (total,), generator=torch.Generator().manual_seed(3))
    return torch.where(seconds % 7 == 0, -1, 1_700_000_000 + seconds)


def event_by_event(layer, x, times, lengths):
    gate, v, q, k = F.silu(x @ layer.input.weight.T).chunk(4, -1)
    out, start = torch.zeros_like(x), 0
    for length in lengths:
        for event in range(length):
            row, others = start + event, range(event + 1 if layer.causal else length)
            for head in range(2):
                part, seen = slice(4 * head, 4 * head + 4), 0.0
                for other in others:
                    distance = torch.tensor(abs(event - other))
                    place = gap_buckets(distance) + (64 if other > event else 0)
                    score = q[row, part] @ k[start + other, part] / 2
                    score = score + layer.position_bias.weight[place, head]
                    if layer.time_bias is not None:
                        pair = times[row], times[start + other]
                        passed = abs(pair[0] - pair[1]) if min(pair) >= 0 else torch.tensor(-1)
                        score = score + layer.time_bias.weight[gap_buckets(passed), head]
                    seen = seen + F.silu(score) * v[start + other, part]
                out[row, part] = seen / len(others)
        start += length
    return layer.output(layer.norm(out) * gate)


@forms
@pytest.mark.parametrize("times", [True, False], ids=["times", "order"])
@pytest.mark.parametrize("held", [1, 1 << 24], ids=["rows", "whole"])
def test_parity_with_the_definition(causal, times, held, monkeypatch):
    monkeypatch.setattr(hstu, "HELD", held)
    lengths = [9, 0, 1, 17]
    layer, x, seconds = layer_of(causal, times), draw(27, 8).requires_grad_(), moments(27)
    given = seconds if times else None
    out = layer(x, bounds_of(lengths), max_length=17, rotary=given).hidden
    expected = event_by_event(layer, x, seconds, lengths)
    torch.testing.assert_close(out, expected)
    leaves, grad = [x, *layer.parameters()], draw(27, 8, seed=9)
    exact = torch.autograd.grad(expected, leaves, grad)
    for found, each in zip(torch.autograd.grad(out, leaves, grad), exact, strict=True):
        torch.testing.assert_close(found, each)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed_histories_are_what_they_are_alone(lengths):
    layer, total = layer_of(), sum(lengths)
    x, seconds = draw(total, 8), moments(total)
    together = layer(x, bounds_of(lengths), max_length=max(lengths), rotary=seconds).hidden
    parts = zip(x.split(lengths), seconds.split(lengths), lengths, strict=True)
    alone = [
        layer(part, bounds_of([n]), max_length=n, rotary=when).hidden
        for part, when, n in parts
        if n
    ]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("time_gap", ["on", "off"])
@pytest.mark.parametrize("parts", [[60], [1] * 60, [30, 1, 1, 20, 8]], ids=str)
def test_extended_event_by_event(parts, time_gap):
    model = small_model(backbone="hstu", time_gap=time_gap)
    with torch.no_grad():
        for layer in model.stack():
            for bias in (layer.attention.position_bias, layer.attention.time_bias):
                if bias is not None:
                    bias.weight.normal_()
    (items,) = random_histories(60)
    history = History(items, np.sort(moments(60).numpy()))
    state, found, start = model.start(), [], 0
    for count in parts:
        batch = pack([history[start : start + count]], model.kept_inputs)
        hidden, state = model.extend(batch, state)
        found.append(hidden)
        start += count
    with torch.no_grad():
        expected = model.encode(pack([history], model.inputs)).hidden
    assert relative_error(torch.cat(found), expected) < 1e-5


def test_what_sees_both_directions_has_no_state():
    with pytest.raises(ValueError, match="only causal"):
        layer_of(causal=False).start()
    with pytest.raises(ValueError, match="hidden_size 9"):
        HSTUAttention(hidden_size=9, num_heads=2)
