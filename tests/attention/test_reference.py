"""The reference against loops over single events, in float64."""

import brute_force
import pytest
import torch
from inputs import AWKWARD, attend, random_inputs, relative_error
from torch.nn.functional import scaled_dot_product_attention

from blossomrec.attention.rotary import rotate

FORMS = [
    pytest.param(dict(causal=True, sinks=0), id="causal"),
    pytest.param(dict(causal=True, sinks=3), id="causal-sinks"),
    pytest.param(dict(causal=False, sinks=0), id="bidirectional"),
    pytest.param(dict(causal=False, sinks=3), id="bidirectional-sinks"),
]
FUSIONS = pytest.mark.parametrize("fusion", ["gated", "union"])


@FUSIONS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", AWKWARD)
def test_reference_is_the_definition(length, form, fusion):
    inputs = random_inputs([length], fusion=fusion, dtype=torch.float64, seed=length)
    form = form | {"fusion": fusion}
    out, selected = attend(*inputs.all(), **form, impl="reference")
    arrays = [x.numpy() for x in inputs.all()[:5]]
    expected, chosen = brute_force.blossom(*arrays, **form)
    assert (selected.numpy() == chosen).all()
    assert relative_error(out, torch.from_numpy(expected)) < 1e-12


@FUSIONS
@pytest.mark.parametrize("block_size, top_n, window", [(8, 1, 1), (4, 7, 3), (32, 2, 16)])
def test_reference_at_other_sizes(block_size, top_n, window, fusion):
    shape = dict(heads=6, groups=3, size=4, block_size=block_size)
    inputs = random_inputs([101], **shape, fusion=fusion, dtype=torch.float64)
    sizes = dict(block_size=block_size, top_n=top_n, window=window, fusion=fusion)
    out, selected = attend(*inputs.all(), **sizes, impl="reference")
    expected, chosen = brute_force.blossom(*(x.numpy() for x in inputs.all()[:5]), **sizes)
    assert (selected.numpy() == chosen).all()
    assert relative_error(out, torch.from_numpy(expected)) < 1e-12


# The long-term path alone, and a union without a bias.
@pytest.mark.parametrize("fusion, gates", [("gated", (1.0, 0.0)), ("union", (0.0,))])
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_attention_is_dense_while_every_block_is_selected(impl, fusion, gates):
    inputs = random_inputs([96], fusion=fusion, dtype=torch.float64)
    inputs.gates[:] = torch.tensor(gates)
    out, _ = attend(*inputs.all(), fusion=fusion, impl=impl)
    q, k, v = (x.transpose(0, 1)[None] for x in (inputs.q, inputs.k, inputs.v))
    dense = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    dense = dense[0].transpose(0, 1)
    assert relative_error(out[:80], dense[:80]) < 1e-12
    assert relative_error(out[80:], dense[80:]) > 1e-3


def test_rotary_scores_depend_on_the_distance_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 16, dtype=torch.float64)

    def score(at, other):
        place = torch.tensor([at]), torch.tensor([other])
        return (rotate(q, place[0]) * rotate(k, place[1])).sum()

    torch.testing.assert_close(score(5, 2), score(1005, 1002))
    assert abs(score(5, 2) - score(5, 3)) > 1e-3
    torch.testing.assert_close(rotate(q, torch.tensor([0])), q)


def test_rotary_leaves_the_other_share_as_it_is():
    torch.manual_seed(0)
    x, place = torch.randn(7, 2, 16), torch.arange(7) * 1_000
    half = rotate(x, place, 0.5)
    assert torch.equal(half[..., 8:], x[..., 8:])
    torch.testing.assert_close(half[..., :8], rotate(x[..., :8], place))
    assert torch.equal(rotate(x, place, 0.0), x)
    # A share is rounded to whole pairs.
    assert torch.equal(rotate(x, place, 0.3)[..., 4:], x[..., 4:])


@pytest.mark.parametrize("fusion", ["gated", "union"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize(
    "options", [{"share": 0.4}, {"power_base": 3.0}, {"power_base": 1.3}], ids=str
)
def test_other_selections_and_patterns(options, causal, fusion):
    form = {**options, "causal": causal, "fusion": fusion, "window": 3, "sinks": 2, "block_size": 4}
    inputs = random_inputs([75], block_size=4, fusion=fusion, dtype=torch.float64)
    arrays = [x.numpy() for x in inputs.all()[:5]]
    expected, chosen = brute_force.blossom(*arrays, **form)
    usual, _ = brute_force.blossom(*arrays, **{**form, "share": 1.0, "power_base": 2.0})
    for impl in ("reference", "torch"):
        out, selected = attend(*inputs.all(), **form, impl=impl)
        assert (selected.numpy() == chosen).all()
        assert relative_error(out, torch.from_numpy(expected)) < 1e-12
    assert relative_error(torch.from_numpy(usual), torch.from_numpy(expected)) > 1e-3
