"""The sampled softmax against its definition in float64, and how much it holds at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from blossomrec.config import TrainingConfig
from blossomrec.losses import NegativeSampler, build_loss, cross_entropy, sampled_softmax
from blossomrec.models import fused
from largest_output import LargestOutput

ROWS, ITEMS, SIZE, COUNT = 37, 101, 8, 60


def problem(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    hidden, weight = draw(ROWS, SIZE).requires_grad_(), draw(ITEMS, SIZE).requires_grad_()
    targets = torch.randint(ITEMS, (ROWS,), generator=generator)
    negatives = torch.randint(ITEMS, (COUNT,), generator=generator)
    # Some targets are drawn, one of them twice, and some rows have none.
    negatives[[3, 40]], negatives[7] = targets[2], targets[30]
    targets[[0, 5, 36]] = -1
    log_q = torch.rand(COUNT, generator=generator) - 5
    weights = 3 * torch.rand(ROWS, generator=generator)
    weights[::4] = 0
    return hidden, weight, targets, negatives, log_q, weights


def definition(hidden, weight, targets, negatives, log_q, weights):
    """Row by row, negative by negative."""
    total = counted = 0.0
    for state, target, share in zip(hidden, targets.tolist(), weights.double(), strict=True):
        if target < 0:
            continue
        terms = [state @ weight[target]]
        for item, q in zip(negatives.tolist(), log_q.double(), strict=True):
            if item != target:
                terms.append(state @ weight[item] - math.log(COUNT) - q)
        total = total + share * (torch.stack(terms).logsumexp(0) - terms[0])
        counted = counted + share
    return total / counted


def error(ours, exact):
    return ((ours.double() - exact.double()).norm() / exact.double().norm()).item()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk_elements", [1, 60, 200, 61 * 36, 1 << 23])
def test_it_is_its_definition_for_any_chunks(weighted, chunk_elements):
    hidden, weight, *others, weights = problem()
    given = weights if weighted else None
    loss = sampled_softmax(hidden, weight, *others, given, chunk_elements=chunk_elements)
    exact = definition(hidden, weight, *others, weights if weighted else torch.ones(ROWS))
    assert error(loss.detach(), exact.detach()) < 1e-9
    ours, right = (torch.autograd.grad(2 * each, (hidden, weight)) for each in (loss, exact))
    assert (ours[0][[0, 5, 36]] == 0).all()
    for one, other in zip(ours, right, strict=True):
        assert error(one, other) < 1e-9


# Logits in the thousands have fewer bits behind the point.
@pytest.mark.parametrize("scale, bound", [(1, 1e-6), (100, 1e-4)], ids=["usual", "large-logits"])
def test_in_float32_only_the_last_bits_are_lost(scale, bound):
    hidden, weight, *others, weights = problem(torch.float32)
    loss = sampled_softmax(hidden * scale, weight, *others, weights)
    exact = definition(hidden.double() * scale, weight.double(), *others, weights)
    assert loss.dtype == torch.float32
    assert error(loss.detach(), exact.detach()) < bound
    ours, right = (torch.autograd.grad(each, (hidden, weight)) for each in (loss, exact))
    for one, other in zip(ours, right, strict=True):
        assert error(one, other) < bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_only_the_factors_are_rounded(dtype):
    hidden, weight, *others, weights = problem(torch.float32)
    with torch.autocast("cpu", dtype):
        loss = sampled_softmax(hidden, weight, *others, weights, chunk_elements=500)
    assert loss.dtype == torch.float32
    rounded = [each.detach().to(dtype).double().requires_grad_() for each in (hidden, weight)]
    exact = definition(*rounded, *others, weights)
    assert error(loss.detach(), exact.detach()) < 1e-6
    ours = torch.autograd.grad(loss, (hidden, weight))
    for one, other in zip(ours, torch.autograd.grad(exact, rounded), strict=True):
        assert one.dtype == torch.float32
        assert error(one, other) < 5e-3


# A model under autocast gives hidden states in its type, beside weights that are float32.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("weighted", [False, True])
def test_kernels_hold_no_logits_and_find_the_same(monkeypatch, weighted, dtype):
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = [each.detach().to(device) for each in problem(torch.float32)]
    hidden, weight, *others, weights = given
    hidden = hidden.to(dtype)
    # A row whose target is all that was drawn.
    few = others[0], others[0][2].expand(3), others[2][:3]
    for sample in (others, few):
        found = []
        for usable in (False, True):
            monkeypatch.setattr(fused, "usable", lambda x, usable=usable: usable)
            leaves = [each.clone().requires_grad_() for each in (hidden, weight)]
            with LargestOutput() as largest, torch.autocast(device, torch.float16):
                loss = sampled_softmax(*leaves, *sample, weights if weighted else None)
            found.append([loss.detach(), *torch.autograd.grad(3 * loss, leaves)])
        if sample is others:
            assert largest.elements < ROWS * COUNT
        for one, other in zip(*found, strict=True):
            assert torch.isfinite(one).all()
            assert error(one, other) < 2e-3


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_what_needs_no_gradient_gets_none(frozen):
    hidden, weight, *others, _ = problem()
    given = {"hidden": hidden, "weight": weight}
    for name in given if frozen == "both" else [frozen]:
        given[name] = given[name].detach()
    loss = sampled_softmax(given["hidden"], given["weight"], *others)
    assert loss.requires_grad == (frozen != "both")
    exact = definition(hidden, weight, *others, torch.ones(ROWS))
    assert error(loss.detach(), exact.detach()) < 1e-9
    for name, each in (("hidden", hidden), ("weight", weight)):
        if frozen not in (name, "both"):
            (ours,) = torch.autograd.grad(loss, each)
            assert error(ours, torch.autograd.grad(exact, each)[0]) < 1e-9


def test_neither_pass_holds_all_logits():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 4, generator=generator).requires_grad_() for n in (3000, 900))
    targets = torch.randint(900, (3000,), generator=generator)
    negatives, log_q = NegativeSampler(900).sample(500)
    for chunk_elements in (15_000, 60_000):
        with LargestOutput() as largest:
            given = hidden, weight, targets, negatives, log_q
            sampled_softmax(*given, chunk_elements=chunk_elements).backward()
        assert chunk_elements / 2 < largest.elements <= chunk_elements


@pytest.mark.parametrize("uniform_share", [0.0, 0.5, 1.0])
def test_the_estimate_of_the_sum_has_no_bias(uniform_share):
    hidden, weight, targets, *_ = problem()
    row = [1]
    hidden, targets = hidden[row].detach(), targets[row]
    logits = (hidden @ weight.T)[0].detach()
    sampler = NegativeSampler(
        ITEMS, counts=np.arange(ITEMS) ** 2, uniform_share=uniform_share, seed=3
    )
    estimates = []
    for _ in range(4000):
        loss = sampled_softmax(hidden, weight.detach(), targets, *sampler.sample(20))
        estimates.append((loss + logits[targets[0]]).exp())
    estimates = torch.stack(estimates)
    deviation = estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - logits.exp().sum()) < 4 * deviation
    # Or else a wrong correction would not show.
    assert deviation < 0.05 * logits.exp().sum()


def test_its_gradient_comes_near_that_of_the_softmax():
    hidden, weight, targets, *_ = problem()
    targets = targets.clamp(min=0)
    exact = torch.autograd.grad(cross_entropy(hidden, weight, targets), (hidden, weight))
    found = []
    for count in (100, 10_000):
        sample = NegativeSampler(ITEMS, counts=np.arange(ITEMS), uniform_share=0.5).sample(count)
        ours = torch.autograd.grad(
            sampled_softmax(hidden, weight, targets, *sample), (hidden, weight)
        )
        found.append([error(one, other) for one, other in zip(ours, exact, strict=True)])
    assert max(found[1]) < 0.05 < min(found[0])


@pytest.mark.parametrize("loss", ["sampled_softmax", "gbce", "bpr"])
def test_rows_without_target_count_nothing(loss):
    hidden, weight, targets, *_, weights = problem()
    config, there = TrainingConfig(loss=loss, negatives=16), targets >= 0
    for given in (None, weights.double()):

        def value(rows, given=given):
            built = build_loss(config, np.ones(ITEMS), ITEMS)
            counted = None if given is None else given[rows]
            found = built(hidden[rows], weight, targets[rows], counted)
            return found.detach(), *torch.autograd.grad(found, (hidden, weight))

        for one, other in zip(value(slice(None)), value(there), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", ["sampled_softmax", "gbce", "bpr"])
def test_no_more_than_the_rows_of_targets_and_sample_is_needed(loss):
    hidden, weight, targets, *_ = problem()
    built = build_loss(TrainingConfig(loss=loss, negatives=16), np.ones(ITEMS), ITEMS)
    negatives, log_q = built.draw(torch.device("cpu"))
    rows = torch.cat([targets[targets >= 0], negatives]).unique()
    places = torch.full((ITEMS + 1,), -1)
    places[rows] = torch.arange(len(rows))
    whole = built.of_sample(hidden, weight, targets, negatives, log_q)
    few = built.of_sample(hidden, weight[rows], places[targets], places[negatives], log_q)
    torch.testing.assert_close(few, whole, rtol=1e-12, atol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("chunk_elements", [500, 1 << 23])
def test_it_is_the_same_on_a_gpu(chunk_elements):
    found = []
    for device in ("cpu", "cuda"):
        hidden, weight, *others, weights = (
            each.detach().to(device) for each in problem(torch.float32)
        )
        hidden.requires_grad_(), weight.requires_grad_()
        with torch.autocast(device, torch.bfloat16):
            loss = sampled_softmax(hidden, weight, *others, weights, chunk_elements=chunk_elements)
        found.append([loss.detach().cpu()])
        found[-1] += [each.cpu() for each in torch.autograd.grad(loss, (hidden, weight))]
    for one, other in zip(*found, strict=True):
        assert error(one, other) < 5e-3
