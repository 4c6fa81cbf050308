"""Losses against their definitions written out in float64."""

from __future__ import annotations

import importlib
import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from blossomrec.config import RunConfig, TrainingConfig, with_options
from blossomrec.data.split import make_split
from blossomrec.errors import ConfigError
from blossomrec.losses import (
    NegativeSampler,
    bpr,
    build_loss,
    cross_entropy,
    gbce,
    sampled_softmax,
    softmax,
    weighted_mean,
)
from blossomrec.losses.softmax import row_cross_entropy
from blossomrec.models import build_model, fused
from blossomrec.training.objective import device_steps
from blossomrec.training.setup import build_parts, open_fabric
from largest_output import LargestOutput

SAMPLED = ["sampled_softmax", "gbce", "bpr"]


def problem(rows=37, items=101, size=8, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, size, generator=generator, dtype=dtype)
    weight = torch.randn(items, size, generator=generator, dtype=dtype)
    targets = torch.randint(items, (rows,), generator=generator)
    hidden, weight = (each.to(device).requires_grad_() for each in (hidden, weight))
    return hidden, weight, targets.to(device)


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact.double()).norm() / exact.double().norm()).item()


def value_and_gradients(loss, hidden, weight):
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("tile_rows", [1, 8, 512])
@pytest.mark.parametrize("chunk_elements", [1, 7, 101, 300, 1 << 23])
def test_losses_of_rows_are_exact_for_any_tiles(monkeypatch, tile_rows, chunk_elements):
    monkeypatch.setattr(softmax, "TILE_ROWS", tile_rows)
    hidden, weight, targets = problem()
    targets[[0, 5, 36]] = -1
    losses = row_cross_entropy(hidden, weight, targets, chunk_elements=chunk_elements)
    exact = F.cross_entropy(hidden @ weight.T, targets, reduction="none", ignore_index=-1)
    assert relative_error(losses.detach(), exact.detach()) < 1e-12
    # By some function of theirs, in which not all count alike.
    found, wanted = (
        value_and_gradients((each * each.sin()).sum(), hidden, weight) for each in (losses, exact)
    )
    for one, other in zip(found, wanted, strict=True):
        assert relative_error(one, other) < 1e-12


def test_losses_of_no_rows():
    hidden, weight, targets = problem()
    losses = row_cross_entropy(hidden[:0], weight, targets[:0])
    assert losses.shape == (0,)
    losses.sum().backward()
    assert (weight.grad == 0).all()


@pytest.mark.parametrize("tile_rows", [1, 8, 512])
@pytest.mark.parametrize("chunk_elements", [1, 7, 101, 300, 1 << 23])
def test_cross_entropy_is_exact_for_any_tiles(monkeypatch, tile_rows, chunk_elements):
    monkeypatch.setattr(softmax, "TILE_ROWS", tile_rows)
    hidden, weight, targets = problem()
    loss = cross_entropy(hidden, weight, targets, chunk_elements=chunk_elements)
    exact = F.cross_entropy(hidden @ weight.T, targets)
    ours = value_and_gradients(3 * loss, hidden, weight)
    for one, other in zip(ours, value_and_gradients(3 * exact, hidden, weight), strict=True):
        assert relative_error(one, other) < 1e-12


@pytest.mark.parametrize("chunk_elements", [300, 1 << 23])
def test_rows_without_target_count_nothing(chunk_elements):
    hidden, weight, targets = problem()
    targets[[0, 5, 36]] = -1
    loss = cross_entropy(hidden, weight, targets, chunk_elements=chunk_elements)
    exact = F.cross_entropy(hidden @ weight.T, targets, ignore_index=-1)
    ours = value_and_gradients(loss, hidden, weight)
    assert (ours[1][[0, 5, 36]] == 0).all()
    for one, other in zip(ours, value_and_gradients(exact, hidden, weight), strict=True):
        assert relative_error(one, other) < 1e-12
    targets[:] = -1
    ours = value_and_gradients(cross_entropy(hidden, weight, targets), hidden, weight)
    assert all((each == 0).all() for each in ours)


@pytest.mark.parametrize("scale", [1, 100], ids=["usual", "large-logits"])
def test_cross_entropy_in_float32(scale):
    hidden, weight, targets = problem(dtype=torch.float32)
    loss = cross_entropy(hidden * scale, weight, targets, chunk_elements=500)
    assert loss.dtype == torch.float32
    exact = F.cross_entropy((hidden.double() * scale) @ weight.double().T, targets)
    ours = value_and_gradients(loss, hidden, weight)
    for one, other in zip(ours, value_and_gradients(exact, hidden, weight), strict=True):
        assert one.dtype == torch.float32
        assert relative_error(one, other) < 1e-5


def test_cross_entropy_under_autocast_rounds_only_the_factors():
    hidden, weight, targets = problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(hidden, weight, targets, chunk_elements=500)
    assert loss.dtype == torch.float32
    rounded = [each.detach().bfloat16().double().requires_grad_() for each in (hidden, weight)]
    exact = F.cross_entropy(rounded[0] @ rounded[1].T, targets)
    assert relative_error(loss, exact) < 1e-6
    ours = torch.autograd.grad(loss, (hidden, weight))
    for one, other in zip(ours, torch.autograd.grad(exact, rounded), strict=True):
        assert one.dtype == torch.float32
        assert relative_error(one, other) < 5e-3


def test_cross_entropy_without_gradients_and_without_rows():
    hidden, weight, targets = problem()
    with torch.no_grad():
        loss = cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    assert relative_error(loss, F.cross_entropy(hidden @ weight.T, targets)) < 1e-12
    empty = cross_entropy(hidden[:0], weight, targets[:0])
    empty.backward()
    assert empty.item() == 0
    assert not weight.grad.any()


def test_cross_entropy_of_a_frozen_catalogue():
    hidden, weight, targets = problem()
    (gradient,) = torch.autograd.grad(cross_entropy(hidden, weight.detach(), targets), hidden)
    exact = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, targets), hidden)[0]
    assert relative_error(gradient, exact) < 1e-12


def test_cross_entropy_never_holds_all_logits():
    hidden, weight, targets = problem(rows=2000, items=3000, size=4, dtype=torch.float32)
    for chunk_elements in (20_000, 100_000):
        with LargestOutput() as largest:
            cross_entropy(hidden, weight, targets, chunk_elements=chunk_elements).backward()
        assert chunk_elements / 2 < largest.elements <= chunk_elements


@pytest.mark.parametrize("loss", SAMPLED)
def test_sampled_losses_never_hold_all_logits(loss):
    hidden, weight, targets = problem(rows=2000, items=3000, size=4, dtype=torch.float32)
    build = build_loss(TrainingConfig(loss=loss, negatives=16), np.ones(3000), 3000)
    with LargestOutput() as largest:
        build(hidden, weight, targets).backward()
    assert largest.elements <= 2000 * 17


def test_sampled_softmax_of_the_whole_catalogue_is_the_softmax():
    hidden, weight, targets = problem()
    everything, log_q = torch.arange(101), torch.full((101,), -math.log(101))
    loss = sampled_softmax(hidden, weight, targets, everything, log_q)
    exact = F.cross_entropy(hidden @ weight.T, targets)
    ours = value_and_gradients(loss, hidden, weight)
    for one, other in zip(ours, value_and_gradients(exact, hidden, weight), strict=True):
        assert relative_error(one, other) < 1e-6


def test_sampled_softmax_estimates_the_sum_without_bias():
    hidden, weight, targets = problem(rows=1)
    sampler = NegativeSampler(101, counts=np.arange(101) ** 2, seed=0)
    logits = (hidden @ weight.T)[0].detach()
    estimates = []
    for _ in range(4000):
        negatives, log_q = sampler.sample(20)
        loss = sampled_softmax(hidden, weight, targets, negatives, log_q).detach()
        estimates.append((loss + logits[targets]).exp())
    estimates = torch.cat(estimates)
    error = estimates.std() / math.sqrt(len(estimates))
    assert abs(estimates.mean() - logits.exp().sum()) < 4 * error


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_gbce_against_its_definition(t):
    hidden, weight, targets = problem()
    negatives = torch.tensor([0, 5, 5, 77, int(targets[3])])
    alpha = 5 / 100
    beta = {0.0: 1.0, 0.5: alpha * (0.5 * (1 - 1 / alpha) + 1 / alpha), 1.0: alpha}[t]
    total = 0.0
    for state, target in zip(hidden, targets, strict=True):
        total = total - torch.log(torch.sigmoid(state @ weight[target]) ** beta)
        for negative in negatives[negatives != target]:
            total = total - torch.log(1 - torch.sigmoid(state @ weight[negative]))
    exact = total / len(hidden) / (len(negatives) + 1)
    ours = value_and_gradients(gbce(hidden, weight, targets, negatives, t=t), hidden, weight)
    for one, other in zip(ours, value_and_gradients(exact, hidden, weight), strict=True):
        assert relative_error(one, other) < 1e-9


def test_bpr_against_its_definition():
    hidden, weight, targets = problem()
    negatives = torch.tensor([0, 5, 77, int(targets[3])])
    terms = [
        -torch.log(torch.sigmoid(state @ weight[target] - state @ weight[negative]))
        for state, target in zip(hidden, targets, strict=True)
        for negative in negatives[negatives != target]
    ]
    exact = torch.stack(terms).mean()
    ours = value_and_gradients(bpr(hidden, weight, targets, negatives), hidden, weight)
    for one, other in zip(ours, value_and_gradients(exact, hidden, weight), strict=True):
        assert relative_error(one, other) < 1e-9


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", [partial(gbce, t=0.75), bpr], ids=["gbce", "bpr"])
def test_losses_by_items_hold_the_logits_of_some_rows(loss, weighted):
    rows, count = 400, 300
    generator = torch.Generator().manual_seed(2)
    hidden, weight = (
        torch.randn(n, 4, generator=generator, dtype=torch.float64).requires_grad_()
        for n in (rows, 101)
    )
    targets = torch.randint(-1, 101, (rows,), generator=generator)
    negatives = torch.randint(101, (count,), generator=generator)
    given = hidden, weight, targets, negatives, some_weights(rows) if weighted else None
    whole = value_and_gradients(loss(*given), hidden, weight)
    for chunk_elements in (5_000, count * 7, 10_000):
        with LargestOutput() as largest:
            ours = value_and_gradients(loss(*given, chunk_elements=chunk_elements), hidden, weight)
        assert chunk_elements / 2 < largest.elements <= chunk_elements
        for one, other in zip(ours, whole, strict=True):
            assert relative_error(one, other) < 1e-12
    with torch.no_grad():
        assert relative_error(loss(*given, chunk_elements=1), whole[0]) < 1e-12


@pytest.mark.parametrize("loss", SAMPLED)
def test_a_sample_of_nothing_but_the_target_is_finite(loss):
    hidden, weight, _ = problem()
    targets, negatives = torch.full((37,), 4), torch.full((6,), 4)
    value = {
        "sampled_softmax": lambda: sampled_softmax(
            hidden, weight, targets, negatives, torch.zeros(6)
        ),
        "gbce": lambda: gbce(hidden, weight, targets, negatives, t=0.75),
        "bpr": lambda: bpr(hidden, weight, targets, negatives),
    }[loss]()
    for each in value_and_gradients(value, hidden, weight):
        assert each.isfinite().all()


@pytest.mark.parametrize("loss", ["gbce", "bpr"])
def test_sampled_losses_under_autocast_are_in_float32(loss):
    hidden, weight, targets = problem(dtype=torch.float32)
    config = TrainingConfig(loss=loss, negatives=16)
    plain = build_loss(config, np.ones(101), 101)(hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        low = build_loss(config, np.ones(101), 101)(hidden, weight, targets)
    assert torch.equal(low, plain)


def test_sampler_draws_by_popularity_and_tells_the_probability():
    counts = np.array([99, 0, 49, 0, 848])
    items, log_q = NegativeSampler(5, counts=counts, seed=1).sample(100_000)
    expected = torch.tensor([100, 1, 50, 1, 849]) / 1001
    torch.testing.assert_close(log_q, expected[items].log())
    shares = torch.bincount(items, minlength=5) / len(items)
    torch.testing.assert_close(shares, expected, atol=5e-3, rtol=0)
    items, log_q = NegativeSampler(5, seed=1).sample(100_000)
    torch.testing.assert_close(log_q, torch.full((100_000,), -math.log(5)))
    assert items.bincount().min() > 19_000


@pytest.mark.parametrize("loss", ["cross_entropy", *SAMPLED])
def test_a_saved_loss_continues_the_same_stream(loss):
    hidden, weight, targets = problem()
    config = TrainingConfig(loss=loss, negatives=8, seed=5)
    undisturbed, saved = (build_loss(config, np.arange(101), 101) for _ in range(2))
    for each in (undisturbed, saved):
        each(hidden, weight, targets)
    state = saved.state_dict()
    resumed = build_loss(config, np.arange(101), 101)
    resumed.load_state_dict(state)
    for _ in range(3):
        one, other = undisturbed(hidden, weight, targets), resumed(hidden, weight, targets)
        assert torch.equal(one, other)
    if loss != "cross_entropy":
        first = build_loss(config, np.arange(101), 101)(hidden, weight, targets)
        assert not torch.equal(one, first)


@pytest.mark.parametrize("loss", ["cross_entropy", *SAMPLED])
def test_every_loss_can_be_learned(loss):
    hidden, weight, targets = problem(dtype=torch.float32)
    build = build_loss(TrainingConfig(loss=loss, negatives=64), np.ones(101), 101)
    optimizer = torch.optim.Adam([hidden, weight], lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        build(hidden, weight, targets).backward()
        optimizer.step()
    hits = (hidden @ weight.T).argmax(1) == targets
    assert hits.float().mean() > 0.9


def test_item_counts_of_another_catalogue_are_refused():
    with pytest.raises(ConfigError, match="7 item counts for 9 items"):
        build_loss(TrainingConfig(), np.ones(7), 9)


def some_weights(rows, device="cpu"):
    """Weights of 0 to 3 in a fixed order, the first ones 0."""
    weights = 3 * torch.rand(rows, generator=torch.Generator().manual_seed(1))
    weights[: rows // 4] = 0
    return weights.to(device)


def exact_weighted(hidden, weight, targets, weights):
    """The weighted cross-entropy in float64."""
    losses = F.cross_entropy(hidden @ weight.T, targets, reduction="none", ignore_index=-1)
    shares = weights.double() * (targets >= 0)
    return (losses * shares).sum() / shares.sum()


@pytest.mark.parametrize("scale", [1, 1e-6, 1e6, 1e-30, 1e30])
@pytest.mark.parametrize("chunk_elements", [7, 300, 1 << 23])
def test_weighted_cross_entropy_is_exact_for_any_tiles(monkeypatch, chunk_elements, scale):
    monkeypatch.setattr(softmax, "TILE_ROWS", 8)
    hidden, weight, targets = problem()
    targets[[3, 20]] = -1
    weights = some_weights(37) * scale
    loss = cross_entropy(hidden, weight, targets, weights, chunk_elements=chunk_elements)
    exact = exact_weighted(hidden, weight, targets, weights)
    ours = value_and_gradients(3 * loss, hidden, weight)
    for one, other in zip(ours, value_and_gradients(3 * exact, hidden, weight), strict=True):
        assert relative_error(one, other) < 1e-12
    assert (ours[1][:9] == 0).all() and (ours[1][[3, 20]] == 0).all()


@pytest.mark.parametrize("weight_of_all", [1.0, 1e-6, 1e6, 1e-38, 3e38])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_weights_that_are_all_the_same_change_nothing(weight_of_all, dtype):
    hidden, weight, targets = problem(dtype=torch.float32)
    targets[5] = -1
    found = []
    for weights in (None, torch.full((37,), weight_of_all)):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = cross_entropy(hidden, weight, targets, weights, chunk_elements=500)
        found.append(value_and_gradients(loss, hidden, weight))
    for one, other in zip(*found, strict=True):
        assert relative_error(one, other) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_all_sizes_in_16_bits(dtype):
    hidden, weight, targets = problem(300, dtype=torch.float32)
    weights = some_weights(300) * 10.0 ** torch.linspace(-6, 6, 300).round()
    with torch.autocast("cpu", dtype):
        loss = cross_entropy(hidden, weight, targets, weights)
    rounded = [each.detach().to(dtype).double().requires_grad_() for each in (hidden, weight)]
    exact = exact_weighted(*rounded, targets, weights)
    assert relative_error(loss, exact) < 1e-6
    ours = torch.autograd.grad(loss, (hidden, weight))
    for one, other in zip(ours, torch.autograd.grad(exact, rounded), strict=True):
        assert relative_error(one, other) < 5e-3


@pytest.mark.parametrize("loss", ["cross_entropy", *SAMPLED])
def test_where_nothing_counts_nothing_is_lost(loss):
    hidden, weight, targets = problem(dtype=torch.float32)
    build = build_loss(TrainingConfig(loss=loss, negatives=16), np.ones(101), 101)
    for rows in (37, 0):
        value = build(hidden[:rows], weight, targets[:rows], torch.zeros(rows))
        assert all((each == 0).all() for each in value_and_gradients(value, hidden, weight))


@pytest.mark.parametrize("loss", SAMPLED)
def test_sampled_losses_are_weighted_means(loss):
    hidden, weight, targets = problem()
    config, weights = TrainingConfig(loss=loss, negatives=16), some_weights(37)

    def value(rows, row_weights=None):
        # Built anew: the same sample each time.
        built = build_loss(config, np.ones(101), 101)
        return built(hidden[rows], weight, targets[rows], row_weights)

    everyone = slice(0, 37)
    for scale in (1e-30, 1.0, 1e30):
        same = value(everyone, torch.full((37,), scale))
        torch.testing.assert_close(same, value(everyone), rtol=1e-12, atol=0)
    each = torch.stack([value(slice(row, row + 1)) for row in range(37)])
    shares = weights.double()
    if loss == "bpr":
        # Its mean is over pairs, of which rows whose target was drawn have fewer.
        negatives, _ = build_loss(config, np.ones(101), 101).sampler.sample(16)
        shares = shares * (negatives != targets[:, None]).sum(1)
    exact = (each * shares).sum() / shares.sum()
    ours = value_and_gradients(value(everyone, weights), hidden, weight)
    for one, other in zip(ours, value_and_gradients(exact, hidden, weight), strict=True):
        assert relative_error(one, other) < 1e-6


def test_a_weighted_mean_is_the_mean_where_all_count_alike():
    losses = torch.tensor([1.0, 2.0, 6.0])
    assert weighted_mean(losses, None) == 3
    assert weighted_mean(losses, torch.full((3,), 1e-40)) == 3
    assert weighted_mean(losses, torch.tensor([0.0, 3.0, 1.0])) == 3
    assert weighted_mean(losses[:0], losses[:0]) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("chunk_elements", [1 << 12, 1 << 23])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_weighted_kernels_agree_with_tiles_on_a_gpu(chunk_elements, scale):
    hidden, weight, targets = problem(1111, 3001, 64, torch.float32, "cuda")
    targets[::7] = -1
    weights = some_weights(1111, "cuda") * scale
    found = []
    for may_fuse in (True, False):
        with torch.autocast("cuda", torch.bfloat16):
            loss = cross_entropy(
                hidden,
                weight,
                targets,
                weights,
                chunk_elements=chunk_elements,
                may_fuse=may_fuse,
            )
        found.append(value_and_gradients(loss, hidden, weight))
    rounded = [each.detach().bfloat16().double().requires_grad_() for each in (hidden, weight)]
    exact = exact_weighted(*rounded, targets, weights)
    found.append((exact.detach(), *torch.autograd.grad(exact, rounded)))
    for kernels, tiles, right in zip(*found, strict=True):
        bound = 5e-3 if right.ndim else 1e-5
        assert relative_error(kernels, tiles) < bound
        assert relative_error(kernels, right) < bound


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("chunk_elements", [1 << 12, 1 << 23])
def test_cross_entropy_on_a_gpu(chunk_elements):
    hidden, weight, targets = problem(1111, 3001, 64, torch.float32, "cuda")
    with torch.autocast("cuda", torch.bfloat16):
        loss = cross_entropy(hidden, weight, targets, chunk_elements=chunk_elements)
    rounded = [each.detach().bfloat16().double().requires_grad_() for each in (hidden, weight)]
    exact = F.cross_entropy(rounded[0] @ rounded[1].T, targets)
    assert relative_error(loss, exact) < 1e-5
    ours = torch.autograd.grad(loss, (hidden, weight))
    for one, other in zip(ours, torch.autograd.grad(exact, rounded), strict=True):
        assert relative_error(one, other) < 5e-3


@pytest.mark.parametrize(
    ("impl", "kernels"), [("auto", True), ("reference", False), ("torch", False)]
)
def test_plain_attention_means_a_plain_loss_and_plain_layers(monkeypatch, tiny_log, impl, kernels):
    used = []

    def by_kernels(*arguments):
        used.append("loss")
        return by_tiles(1 << 23, *arguments)

    def add_norm(x, attended, norm, p):
        used.append("layer")
        return x + attended

    def feed_forward_norm(x, *_):
        return x

    by_tiles = softmax._by_tiles
    monkeypatch.setattr(softmax, "kernels_take", lambda *_: True)
    monkeypatch.setattr(softmax, "_by_kernels", by_kernels)
    monkeypatch.setattr(fused, "usable", lambda _: True)
    for module, function in (("norm", add_norm), ("feed_forward", feed_forward_norm)):
        kernels_of = importlib.import_module(f"blossomrec.models.fused.{module}")
        monkeypatch.setattr(kernels_of, function.__name__, function)
    config = with_options(RunConfig(), {"attention_impl": impl, "hidden_size": 16, "layers": 1})
    model = build_model(config.model, tiny_log.num_items)
    split = make_split(tiny_log, config.evaluation)
    parts = build_parts(model, tiny_log, split.train_end, config, open_fabric(config.training))
    step = next(device_steps(parts.batches.epoch(0), torch.device("cpu")))
    parts.objective(step)
    assert used == (["layer", "loss"] if kernels else [])
