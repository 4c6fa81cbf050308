"""Attention to a window against a softmax over pairs of events."""

import pytest
import torch
from peer_inputs import LENGTHS, bounds_of, draw

from blossomrec.models.peers.window import WindowAttention


def layer_of(window, causal=True):
    torch.manual_seed(0)
    given = {"hidden_size": 16, "num_heads": 4, "num_kv_heads": 2}
    return WindowAttention(window=window, causal=causal, **given).double()


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("window", [1, 2, 31, 32, 50, 500])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_parity_with_pairs_of_events(lengths, window, causal):
    layer, total = layer_of(window, causal), sum(lengths)
    leaves = [draw(total, heads, 4, seed=heads).requires_grad_() for heads in (4, 2, 2)]
    q, k, v = leaves
    bounds = bounds_of(lengths)
    history = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(total)[:, None] - torch.arange(total)
    seen = (distance < window) & (distance >= 0 if causal else distance > -window)
    seen &= history[:, None] == history
    scores = torch.einsum("thd,shd->hts", q, k.repeat_interleave(2, 1)) / 2
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    expected = torch.einsum("hts,shd->thd", weights, v.repeat_interleave(2, 1))
    out = layer.attend(q, k, v, bounds, max(lengths))
    torch.testing.assert_close(out, expected)
    grad = draw(total, 4, 4, seed=9)
    exact = torch.autograd.grad(expected, leaves, grad)
    for found, each in zip(torch.autograd.grad(out, leaves, grad), exact, strict=True):
        torch.testing.assert_close(found, each)


@pytest.mark.parametrize("parts", [[80], [1] * 80, [30, 1, 1, 40, 8]], ids=str)
def test_extended_event_by_event(parts):
    layer, x = layer_of(7), draw(80, 16)
    state, found = layer.start(), []
    for part in x.split(parts):
        out, state = layer.extend(part, state)
        found.append(out.hidden)
    expected = layer(x, bounds_of([80]), max_length=80).hidden
    torch.testing.assert_close(torch.cat(found), expected)
