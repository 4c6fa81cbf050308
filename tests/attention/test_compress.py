"""Block keys: complete blocks in order, windows that end with their block, both forms alike."""

import brute_force
import numpy as np
import pytest
import torch
from inputs import AWKWARD, random_inputs, relative_error

from blossomrec.attention.compress import MeanCompression, MLPCompression, keys_of_blocks

LENGTHS = [0, *AWKWARD, 0, 2]


def windows_of(inputs, window):
    """By slices, [N, G, window, d]."""
    found = [
        brute_force.block_key_windows(inputs.history(number).k.detach().numpy(), 16, window)
        for number in range(len(inputs.cu_seqlens) - 1)
    ]
    return torch.from_numpy(np.concatenate([each for each in found if len(each)]))


def test_blocks_are_in_the_order_of_histories():
    inputs = random_inputs(LENGTHS, dtype=torch.float64)
    expected = windows_of(inputs, 16).transpose(1, 2)
    blocks = keys_of_blocks(inputs.k, inputs.cu_seqlens, 16)
    assert len(blocks) == len(inputs.k) // 16 > len(expected)
    assert torch.equal(blocks[: len(expected)], expected)
    assert (blocks[len(expected) :] == 0).all()


def test_mean_compression_averages_the_block():
    inputs = random_inputs([40, 16])
    keys = MeanCompression(block_size=16)(inputs.k, inputs.cu_seqlens)
    starts = (0, 16, 40)
    expected = torch.stack([inputs.k[start : start + 16].mean(0) for start in starts])
    torch.testing.assert_close(keys, expected)


@pytest.mark.parametrize("window", [16, 32, 48])
def test_perceptron_over_whole_windows_and_its_gradients(window):
    """The sum over shifted blocks is the perceptron over each window copied out."""
    inputs = random_inputs(LENGTHS, dtype=torch.float64)
    torch.manual_seed(0)
    compress = MLPCompression(head_dim=8, block_size=16, window=window).double()
    k = inputs.k.requires_grad_()
    value = compress(k, inputs.cu_seqlens)
    expected = compress.pool(windows_of(inputs, window))
    assert relative_error(value[: len(expected)].detach(), expected.detach()) < 1e-12
    direction = torch.randn(expected.shape, dtype=torch.float64)
    leaves = list(compress.parameters())
    *gradients, grad_k = torch.autograd.grad(
        (value[: len(expected)] * direction).sum(), [*leaves, k]
    )
    for ours, theirs in zip(
        gradients, torch.autograd.grad((expected * direction).sum(), leaves), strict=True
    ):
        assert relative_error(ours, theirs) < 1e-12
    # By differences along one direction.
    step = torch.randn(k.shape, dtype=torch.float64) * 1e-6
    with torch.no_grad():
        ahead, behind = (compress(k + way * step, inputs.cu_seqlens) for way in (1, -1))
    slope = ((ahead - behind)[: len(expected)] * direction).sum() / 2
    assert float((grad_k * step).sum()) == pytest.approx(float(slope), rel=1e-5)


@pytest.mark.parametrize("lengths", [[], [3, 15]], ids=str)
def test_no_complete_block(lengths):
    inputs = random_inputs(lengths)
    assert (MeanCompression(block_size=16)(inputs.k, inputs.cu_seqlens) == 0).all()
    assert len(
        MLPCompression(head_dim=8, block_size=16, window=32)(inputs.k, inputs.cu_seqlens)
    ) == (sum(lengths) // 16)


def test_a_window_is_a_whole_number_of_blocks():
    with pytest.raises(ValueError, match="window is 24: it must be a multiple of 16"):
        MLPCompression(head_dim=8, block_size=16, window=24)
