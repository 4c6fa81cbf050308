"""Softmax over a catalogue by kernels, against its definition in float64."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from blossomrec.losses import cross_entropy, sharded
from blossomrec.losses.softmax import row_cross_entropy
from blossomrec.models import fused
from blossomrec.models.fused import catalogue_loss

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def problem(rows, items, size, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, size, generator=generator) for n in (rows, items))
    targets = torch.randint(items, (rows,), generator=generator)
    targets[0], targets[-1] = 0, items - 1
    hidden, weight = (each.to(DEVICE).half() for each in (hidden * scale, weight))
    return hidden, weight, targets.to(DEVICE)


def relative_error(value, exact):
    return float((value.double() - exact.double()).norm() / exact.double().norm())


@pytest.fixture(params=[3], autouse=True)
def processors(request, monkeypatch):
    """Rows and items are cut into other parts on other devices."""
    monkeypatch.setattr(catalogue_loss, "_processors", lambda device: request.param)


def losses_and_gradients(hidden, weight, targets, shares=None):
    lse, losses, of_rows = catalogue_loss.row_losses(hidden, weight, targets, differentiate=True)
    of_items = catalogue_loss.catalogue_gradient(hidden, weight, targets, lse, shares)
    assert {each.dtype for each in (lse, losses, of_rows, of_items)} == {torch.float32}
    alone = catalogue_loss.row_losses(hidden, weight, targets, differentiate=False)
    assert torch.equal(alone[0], lse) and torch.equal(alone[1], losses) and alone[2] is None
    return lse, losses, (of_rows, of_items)


@pytest.mark.parametrize(
    "processors, rows, items, size",
    [
        (1, 1, 1, 16),
        (3, 37, 129, 8),
        (16, 150, 101, 50),
        (1, 530, 300, 64),
        (16, 130, 700, 16),
        (3, 128, 256, 150),
    ],
    indirect=["processors"],
)
def test_losses_and_gradients(rows, items, size):
    hidden, weight, targets = problem(rows, items, size, scale=64**-0.5)
    lse, losses, gradients = losses_and_gradients(hidden, weight, targets)
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    logits = exact[0] @ exact[1].T
    expected = F.cross_entropy(logits, targets, reduction="none")
    assert (lse - logits.logsumexp(1)).abs().max() < 1e-5
    assert (losses - expected).abs().max() < 1e-5
    for value, other in zip(gradients, torch.autograd.grad(expected.sum(), exact), strict=True):
        assert float((value - other).norm()) < 1e-3 * float(other.norm()) + 1e-5


def test_rows_without_target_count_nothing():
    hidden, weight, targets = problem(37, 129, 8)
    targets[[0, 5, 36]] = -1
    lse, losses, gradients = losses_and_gradients(hidden, weight, targets)
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    logits = exact[0] @ exact[1].T
    expected = F.cross_entropy(logits, targets, reduction="none", ignore_index=-1)
    assert relative_error(losses, expected.detach()) < 1e-5
    assert (lse[[0, 5, 36]] == torch.inf).all()
    assert (gradients[0][[0, 5, 36]] == 0).all()
    for value, other in zip(gradients, torch.autograd.grad(expected.sum(), exact), strict=True):
        assert relative_error(value, other) < 1e-3


def test_small_probabilities_have_gradients():
    """One of 65,536 that are alike would be less than the smallest normal number in 16 bits."""
    hidden, weight = (torch.zeros(n, 16, device=DEVICE).half() for n in (2, 1 << 16))
    hidden[0, 0] = 1.0
    targets = torch.tensor([3, -1], device=DEVICE)
    _, _, (_, of_items) = losses_and_gradients(hidden, weight, targets)
    assert float(of_items[5, 0]) == pytest.approx(1 / (1 << 16), rel=1e-3)


@pytest.mark.parametrize("rows", [64, 150])
def test_shares_are_numbers_of_either_sign(rows):
    hidden, weight, targets = problem(rows, 129, 50, scale=0.1)
    targets[[0, 5, 36]] = -1
    shares = torch.linspace(-1, 1, rows, device=DEVICE)
    shares[10:14] = 0
    lse, _, _ = catalogue_loss.row_losses(hidden, weight, targets, differentiate=False)
    found = catalogue_loss.catalogue_gradient(hidden, weight, targets, lse, shares)
    exact = weight.double().requires_grad_()
    losses = F.cross_entropy(hidden.double() @ exact.T, targets, reduction="none", ignore_index=-1)
    expected = torch.autograd.grad((losses * shares).sum(), exact)[0]
    assert relative_error(found, expected) < 1e-3


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rows_count_as_their_weights_say(monkeypatch, scale):
    monkeypatch.setattr(fused, "usable", lambda x: True)
    hidden, weight, targets = problem(150, 129, 50)
    targets[[0, 5, 36]] = -1
    generator = torch.Generator().manual_seed(1)
    weights = (torch.rand(150, generator=generator) * 3).to(DEVICE) * scale
    weights[10:40] = 0
    leaves = [each.float().requires_grad_() for each in (hidden, weight)]
    with torch.autocast(DEVICE, torch.float16):
        loss = cross_entropy(*leaves, targets, weights)
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    losses = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="none", ignore_index=-1)
    shares = weights.double() * (targets >= 0)
    expected = (losses * shares).sum() / shares.sum()
    assert relative_error(loss.detach(), expected.detach()) < 1e-5
    gradients = torch.autograd.grad(loss, leaves)
    for value, other in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        assert relative_error(value, other) < 1e-3
    assert (gradients[0][10:40] == 0).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rows_have_losses_and_gradients_of_their_own(monkeypatch, scale):
    monkeypatch.setattr(fused, "usable", lambda x: True)
    hidden, weight, targets = problem(150, 129, 50)
    targets[[0, 5, 36]] = -1
    generator = torch.Generator().manual_seed(1)
    counts = torch.rand(150, generator=generator).to(DEVICE) * scale
    counts[10:40] = 0
    leaves = [each.float().requires_grad_() for each in (hidden, weight)]
    with torch.autocast(DEVICE, torch.float16):
        losses = row_cross_entropy(*leaves, targets)
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="none", ignore_index=-1)
    assert relative_error(losses.detach(), expected.detach()) < 1e-5
    gradients = torch.autograd.grad(losses @ counts, leaves)
    wanted = torch.autograd.grad(expected @ counts.double(), exact)
    for value, other in zip(gradients, wanted, strict=True):
        assert relative_error(value, other) < 1e-3
    assert (gradients[0][10:40] == 0).all()


@pytest.mark.parametrize("processors", [1, 16], indirect=True)
@pytest.mark.parametrize("rows, items, size", [(37, 1, 8), (150, 129, 50), (40, 300, 64)])
def test_a_sample_leaves_out_targets_and_adds_to_logits(rows, items, size):
    hidden, weight, targets = problem(rows, items, size, scale=64**-0.5)
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randint(items, (items,), generator=generator).to(DEVICE) + 7
    targets, bias = targets + 7, torch.randn(items, generator=generator).to(DEVICE)
    targets[[0, 5, 36]] = -1
    sample, others = catalogue_loss.Sample(numbers, bias), torch.randn(rows, generator=generator)
    given = hidden, weight, targets
    lse, losses, of_rows = catalogue_loss.row_losses(*given, differentiate=True, sample=sample)
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    logits = exact[0] @ exact[1].T + bias.double()
    logits = logits.masked_fill(numbers == targets[:, None], -torch.inf)
    counted, wanted = targets >= 0, logits.logsumexp(1)
    there = counted & (wanted > -torch.inf)
    assert torch.allclose(lse[there].double(), wanted[there], atol=1e-5)
    assert (lse[counted & ~there] == -torch.inf).all()
    assert (lse[~counted] == torch.inf).all() and (losses[~counted] == 0).all()
    assert (of_rows[~there] == 0).all()
    # Of a larger sum, as of one with the target in it.
    whole = torch.logaddexp(wanted.detach(), others.to(DEVICE).double())
    shares = torch.rand(rows, generator=generator).to(DEVICE)
    lse = whole.float().masked_fill(~counted, torch.inf)
    of_items = catalogue_loss.catalogue_gradient(*given, lse, shares, sample)
    sums = (torch.logaddexp(wanted, others.to(DEVICE).double()) * shares)[counted].sum()
    (expected,) = torch.autograd.grad(sums, exact[1], retain_graph=True)
    assert float((of_items - expected).norm()) < 1e-3 * float(expected.norm()) + 1e-5
    if there.any():
        (expected,) = torch.autograd.grad(wanted[there].sum(), exact[0])
        assert relative_error(of_rows[there], expected[there]) < 1e-3


def test_large_logits():
    hidden, weight, targets = problem(40, 200, 16, scale=100.0)
    _, losses, _ = losses_and_gradients(hidden, weight, targets)
    expected = F.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="none")
    assert relative_error(losses, expected) < 1e-6


def test_the_loss_takes_the_kernels_where_it_may(monkeypatch):
    monkeypatch.setattr(fused, "usable", lambda x: True)
    hidden, weight, targets = problem(37, 129, 8)
    leaves = [each.float().requires_grad_() for each in (hidden, weight)]
    found = []
    kernel = catalogue_loss.row_losses
    monkeypatch.setattr(
        catalogue_loss, "row_losses", lambda *a, **k: found.append(a) or kernel(*a, **k)
    )
    with torch.autocast(DEVICE, torch.float16):
        loss = cross_entropy(*leaves, targets)
    assert len(found) == 1
    exact = F.cross_entropy(hidden.double() @ weight.double().T, targets)
    assert relative_error(loss.detach(), exact) < 1e-5
    gradients = torch.autograd.grad(3 * loss, leaves)
    expected = torch.autograd.grad(3 * F.cross_entropy(leaves[0] @ leaves[1].T, targets), leaves)
    for value, other in zip(gradients, expected, strict=True):
        assert relative_error(value, other) < 1e-3
    # Without autocast the sums are float32 products, which the kernels do not make.
    cross_entropy(*leaves, targets)
    assert len(found) == 1


def test_parts_of_a_catalogue_make_the_whole():
    hidden, weight, targets = problem(37, 129, 24, scale=24**-0.5)
    targets[3] = -1
    lse, losses, (of_rows, of_items) = losses_and_gradients(hidden, weight, targets)
    parts = []
    for first, stop in ((0, 70), (70, 129)):
        items, here = weight[first:stop], (targets >= first) & (targets < stop)
        local = torch.where(here, targets - first, stop - first).where(targets >= 0, -1)
        own, gradient = sharded._own_items(hidden, items, local, 0, True)
        parts.append((items, local, own, gradient))
    together = torch.stack([own for _, _, own, _ in parts])
    whole = together[:, 0].logsumexp(0)
    torch.testing.assert_close(whole, lse)
    counted = targets >= 0
    torch.testing.assert_close((whole - together[:, 1].sum(0))[counted], losses[counted])
    for items, local, own, gradient in parts:
        sharded._to_all_items(gradient, items, local, own[0], whole)
    torch.testing.assert_close(sum(part[3] for part in parts), of_rows, rtol=1e-3, atol=1e-4)
    found = [
        catalogue_loss.catalogue_gradient(hidden, items, local, whole) for items, local, *_ in parts
    ]
    torch.testing.assert_close(torch.cat(found), of_items, rtol=1e-3, atol=1e-4)
