"""What either path counts in the output: the gates, or shares of the weight of one softmax."""

import math
from itertools import pairwise

import pytest
import torch
from inputs import AWKWARD, attend, random_inputs, relative_error

from blossomrec.attention import AttentionOutput, BlossomSpec
from blossomrec.attention.path_shares import path_shares
from blossomrec.attention.reference import long_term_mask, short_term_mask


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_shares_of_a_union_against_the_masks_of_the_definition(causal, sinks):
    inputs = random_inputs([*AWKWARD, 0], fusion="union")
    spec = BlossomSpec(fusion="union", causal=causal, sinks=sinks)
    _, selected = attend(*inputs.all(), fusion="union", causal=causal, sinks=sinks)
    output = AttentionOutput(inputs.q, None, selected, inputs.gates)
    shares = path_shares(inputs.q, inputs.k, inputs.cu_seqlens, output, spec)
    assert shares.shape == (len(inputs.q), 4, 2)
    torch.testing.assert_close(shares.sum(-1), torch.ones(len(inputs.q), 4))
    for start, end in pairwise(inputs.cu_seqlens.tolist()):
        rows = slice(start, end)
        near = short_term_mask(end - start, spec, inputs.q.device)
        far = long_term_mask(selected[rows], 16, causal).repeat_interleave(2, 0)
        k = inputs.k[rows].repeat_interleave(2, 1)
        scores = torch.einsum("lhd,shd->hls", inputs.q[rows], k) / math.sqrt(8)
        scores = scores + inputs.gates[rows, :, 0].T[..., None] * near
        weights = scores.masked_fill(~(near | far), -math.inf).softmax(-1)
        expected = (weights * near).sum(-1).T
        assert start == end or relative_error(shares[rows, :, 1], expected) < 1e-5


def test_gates_are_the_shares_where_there_are_gates():
    inputs = random_inputs([40])
    output = AttentionOutput(inputs.q, None, torch.zeros(40, 2, 4).int(), inputs.gates)
    shares = path_shares(inputs.q, inputs.k, inputs.cu_seqlens, output, BlossomSpec())
    assert shares is inputs.gates
