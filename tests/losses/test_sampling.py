"""Items drawn by a counter: by their distribution, and the same everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from blossomrec.config import LARGEST_SEED, TrainingConfig
from blossomrec.losses import NegativeSampler, build_loss
from blossomrec.losses.sampling import _mixed, uniform

MASK = (1 << 64) - 1


def mixed(bits: int) -> int:
    """The finaliser of SplitMix64 in whole numbers."""
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


@pytest.mark.parametrize("number", [0, 1, 5, 1 << 40, (1 << 63) - 1, 1 << 63, MASK])
def test_bits_are_mixed_as_without_a_sign(number):
    signed = number - (1 << 64) if number >> 63 else number
    assert _mixed(torch.tensor([signed])).item() & MASK == mixed(number)


def test_numbers_are_those_of_the_generator():
    """Of SplitMix64 that begins at a state made of seed and stream."""
    golden, seed, stream = 0x9E3779B97F4A7C15, 11, 3
    state = mixed((mixed(seed) + stream * golden) & MASK)
    wanted = [(mixed((state + n * golden) & MASK) >> 11) / 2**53 for n in range(1, 8)]
    assert uniform(torch.tensor(seed), torch.tensor(stream), 7).tolist() == wanted


def test_numbers_are_uniform_and_independent():
    streams = torch.stack(
        [uniform(torch.tensor(seed), torch.tensor(n), 2000) for seed in (0, 1) for n in range(20)]
    )
    assert (streams >= 0).all() and (streams < 1).all()
    shares = torch.histc(streams, 50, 0, 1) / streams.numel()
    # Four standard deviations of a count of 1,600.
    assert (shares * 50 - 1).abs().max() < 0.1
    correlations = torch.corrcoef(streams) - torch.eye(len(streams))
    assert correlations.abs().max() < 5 / math.sqrt(2000)
    later = torch.corrcoef(torch.stack([streams[:, 1:].flatten(), streams[:, :-1].flatten()]))
    assert later[0, 1].abs() < 4 / math.sqrt(streams.numel())


@pytest.mark.parametrize("uniform_share", [0.0, 0.25, 1.0])
def test_items_are_drawn_from_the_mixture_and_tell_their_probability(uniform_share):
    counts = np.array([99, 0, 49, 0, 848])
    popular = torch.tensor([100, 1, 50, 1, 849]) / 1001
    expected = uniform_share / 5 + (1 - uniform_share) * popular
    sampler = NegativeSampler(5, counts=counts, uniform_share=uniform_share, seed=1)
    items, log_q = sampler.sample(100_000)
    torch.testing.assert_close(log_q, expected[items].log())
    shares = torch.bincount(items, minlength=5) / len(items)
    torch.testing.assert_close(shares, expected, atol=5e-3, rtol=0)


def test_every_sample_is_another_one_and_each_seed_has_its_own():
    samples = [
        tuple(sampler.sample(50)[0].tolist())
        for seed in (0, 1, LARGEST_SEED)
        for sampler in [NegativeSampler(10_000, seed=seed)]
        for _ in range(4)
    ]
    assert len(set(samples)) == 12


def test_the_last_item_of_a_large_catalogue_can_be_drawn():
    counts = np.zeros(3_000_000)
    counts[-1] = 3e9
    items, log_q = NegativeSampler(len(counts), counts=counts).sample(1000)
    assert 900 < (items == len(counts) - 1).sum() <= 1000
    assert log_q.isfinite().all()


def test_a_training_of_before_goes_on_with_a_stream_of_its_own():
    loss = build_loss(TrainingConfig(loss="bpr", negatives=4), np.ones(30), 30)
    loss.draw(torch.device("cpu"))
    with pytest.warns(UserWarning, match="items of a new stream"):
        loss.load_state_dict({"generator": torch.Generator().get_state()})
    assert loss.state_dict()["drawn"] == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_items_are_drawn_on_a_gpu():
    counts = np.random.default_rng(0).integers(0, 1000, 50_000)
    samplers = [NegativeSampler(50_000, counts=counts, uniform_share=0.3, seed=5) for _ in "ab"]
    for _ in range(3):
        here, there = samplers[0].sample(4096), samplers[1].sample(4096, "cuda")
        for one, other in zip(here, there, strict=True):
            assert torch.equal(one, other.cpu())
