"""LinRec against sums over pairs of events in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from peer_inputs import LENGTHS, bounds_of, draw, relative_error

from blossomrec.attention.rotary import rotate
from blossomrec.models.peers import linrec
from blossomrec.models.peers.linrec import Before, LinRec, linear_attention

both_ways = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
lengths_of = pytest.mark.parametrize("lengths", LENGTHS, ids=str)


def pair_by_pair(q, k, v, lengths, causal):
    """Every event over what it sees, from the definition; q [T, H, d], k and v [T, G, d]."""
    out, start = torch.zeros_like(q), 0
    shared = q.shape[1] // k.shape[1]
    for length in lengths:
        for event in range(length):
            stop = start + (event + 1 if causal else length)
            keys, values = k[start:stop], v[start:stop]
            norms = (keys.square().sum(0) + linrec.EPSILON).sqrt() * math.sqrt(len(keys))
            for head in range(q.shape[1]):
                group = head // shared
                weights = (keys[:, group] / norms[group]) @ q[start + event, head]
                out[start + event, head] = weights @ values[:, group]
        start += length
    return out


@both_ways
@lengths_of
def test_parity_with_pairs_of_events(lengths, causal):
    total = sum(lengths)
    q, k, v = (draw(total, heads, 6, seed=heads) for heads in (4, 2, 2))
    out, _ = linear_attention(q, k, v, bounds_of(lengths), max(lengths), causal=causal)
    torch.testing.assert_close(out, pair_by_pair(q, k, v, lengths, causal))
    single = [x.float() for x in (q, k, v)]
    rounded, _ = linear_attention(*single, bounds_of(lengths), max(lengths), causal=causal)
    assert rounded.dtype == torch.float32
    assert relative_error(rounded, out) < 1e-5


@both_ways
@lengths_of
def test_gradients(lengths, causal):
    total = sum(lengths)
    leaves = [draw(total, heads, 4, seed=heads).requires_grad_() for heads in (4, 2, 2)]
    grad = draw(total, 4, 4, seed=9)
    out, _ = linear_attention(*leaves, bounds_of(lengths), max(lengths), causal=causal)
    expected = torch.autograd.grad(pair_by_pair(*leaves, lengths, causal), leaves, grad)
    for found, exact in zip(torch.autograd.grad(out, leaves, grad), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("split", [0, 1, 63, 64, 150])
def test_sums_of_what_came_before(split):
    lengths = [150, 170]
    q, k, v = (draw(320, heads, 6, seed=heads) for heads in (4, 2, 2))
    whole, totals = linear_attention(q, k, v, bounds_of(lengths), 170)
    places = torch.cat([torch.arange(length) for length in lengths])
    first = places < split
    parts = [[x[first] for x in (q, k, v)], [x[~first] for x in (q, k, v)]]
    bounds = [bounds_of([split, split]), bounds_of([150 - split, 170 - split])]
    old, sums = linear_attention(*parts[0], bounds[0], max(split, 1))
    new, after = linear_attention(*parts[1], bounds[1], 170, before=Before(sums, places[~first]))
    torch.testing.assert_close(old, whole[first])
    torch.testing.assert_close(new, whole[~first])
    torch.testing.assert_close(after, totals)


def test_a_layer_normalises_features_and_rotates_them():
    torch.manual_seed(0)
    layer = LinRec(hidden_size=8, num_heads=2, num_kv_heads=1).double()
    x, place = draw(9, 8), torch.arange(9)
    q, k, v = layer.heads_of(x)
    q, k = F.elu(q), F.elu(k)
    q = q / (q.square().sum(-1, keepdim=True) + linrec.EPSILON).sqrt() / 2
    q, k = (rotate(each, place, 0.5) for each in (q, k))
    expected = layer.output(pair_by_pair(q, k, v, [9], True).flatten(1))
    torch.testing.assert_close(layer(x, bounds_of([9]), max_length=9).hidden, expected)


def test_sums_are_float32_under_autocast():
    torch.manual_seed(0)
    layer = LinRec(hidden_size=32, num_heads=4, num_kv_heads=2)
    x, bounds = draw(300, 32).float(), bounds_of([300])
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, bounds, max_length=300).hidden
    assert out.dtype == torch.bfloat16
    assert relative_error(out, layer(x, bounds, max_length=300).hidden) < 0.02


def test_bidirectional_sums_have_no_state():
    with pytest.raises(ValueError, match="only causal"):
        LinRec(hidden_size=8, num_heads=2, num_kv_heads=1, causal=False).initial(1)
