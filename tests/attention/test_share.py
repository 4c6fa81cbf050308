"""Blocks up to a share of the importance: the kernel after the selection, against the reference."""

import functools

import pytest
import torch
from inputs import attend, random_inputs

pytest.importorskip("triton")

from blossomrec.attention.backends.gpu import share as launched
from blossomrec.attention.backends.gpu.share import take_share

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def taken(inputs, selected, share, causal=True):
    given = inputs.q, inputs.block_keys, selected, inputs.cu_seqlens
    return take_share(*given, 16, causal, share)


@functools.cache
def scaled_inputs(heads, size):
    # One history has more blocks than the kernel takes at a time.
    lengths = [1, 15, 16, 0, 33, 81, 16 * 20 + 3]
    inputs = random_inputs(lengths, heads=heads, groups=2, size=size).to(DEVICE)
    inputs.q *= 2
    return inputs


@functools.cache
def selected_by_reference(heads, top_n, size, causal):
    exact = scaled_inputs(heads, size).to(dtype=torch.float64)
    return attend(*exact.all(), impl="reference", top_n=top_n, causal=causal)[1]


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("heads, top_n, size", [(2, 4, 16), (16, 11, 16), (4, 1, 64)], ids=str)
def test_parity(heads, top_n, size, share, causal, monkeypatch):
    monkeypatch.setattr(launched, "BLOCKS", 16)
    inputs, selected = scaled_inputs(heads, size), selected_by_reference(heads, top_n, size, causal)
    exact, form = inputs.to(dtype=torch.float64), dict(top_n=top_n, causal=causal)
    _, expected = attend(*exact.all(), impl="reference", share=share, **form)
    assert torch.equal(taken(inputs, selected, share, causal), expected)
    assert (expected < 0).sum() > (selected < 0).sum() or top_n == 1


def test_of_equal_blocks_the_lower_ones_are_taken():
    inputs = random_inputs([16 * 9], heads=2, groups=1, size=16).to(DEVICE)
    inputs.block_keys[:] = inputs.block_keys[:1]
    form = dict(top_n=6, share=0.45)
    _, selected = attend(*inputs.all(), impl="reference", top_n=6)
    _, expected = attend(*inputs.all(), impl="reference", **form)
    found = taken(inputs, selected, 0.45)
    assert torch.equal(found, expected)
    assert found[-1].flatten().tolist() == [0, 1, 2, 3, -1, -1]


def test_importance_far_apart():
    inputs = random_inputs([16 * 80], heads=2, groups=1, size=16).to(DEVICE)
    inputs.q *= 100
    exact = inputs.to(dtype=torch.float64)
    _, selected = attend(*exact.all(), impl="reference")
    _, expected = attend(*exact.all(), impl="reference", share=0.9)
    assert torch.equal(taken(inputs, selected, 0.9), expected)


def test_the_operator_is_registered_in_full():
    inputs = random_inputs([40], heads=2, groups=1, size=16).to(DEVICE)
    _, selected = attend(*inputs.all(), impl="reference")
    given = inputs.q, inputs.block_keys, selected, inputs.cu_seqlens
    torch.library.opcheck(take_share, (*given, 16, True, 0.5))
