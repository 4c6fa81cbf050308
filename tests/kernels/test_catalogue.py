"""Softmax over a catalogue by kernels, against its definition in float64."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from blossomrec.losses import cross_entropy
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


@pytest.mark.parametrize("limit", [1, 1 << 14, 1 << 26], ids=["columns", "some", "one"])
@pytest.mark.parametrize(
    "rows, items, size", [(1, 1, 16), (37, 129, 8), (150, 101, 50), (530, 300, 64)]
)
def test_sum_and_gradients(rows, items, size, limit):
    hidden, weight, targets = problem(rows, items, size)
    loss, gradients = catalogue_loss.summed_cross_entropy(hidden, weight, targets, limit, True)
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="sum")
    assert float(loss) == pytest.approx(float(expected.detach()), abs=1e-5 * rows)
    for value, other in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        assert value.dtype == torch.float32
        assert float((value - other).norm()) < 1e-3 * float(other.norm()) + 1e-5
    assert catalogue_loss.summed_cross_entropy(hidden, weight, targets, limit, False)[1] == []


@pytest.mark.parametrize("limit", [1 << 12, 1 << 26], ids=["some", "one"])
def test_rows_without_target_count_nothing(limit):
    hidden, weight, targets = problem(37, 129, 8)
    targets[[0, 5, 36]] = -1
    loss, gradients = catalogue_loss.summed_cross_entropy(hidden, weight, targets, limit, True)
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    logits = exact[0] @ exact[1].T
    expected = F.cross_entropy(logits, targets, reduction="sum", ignore_index=-1)
    assert relative_error(loss, expected.detach()) < 1e-5
    assert (gradients[0][[0, 5, 36]] == 0).all()
    for value, other in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        assert relative_error(value, other) < 1e-3


@pytest.mark.parametrize("limit", [1 << 12, 1 << 26], ids=["some", "one"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rows_count_as_their_weights_say(monkeypatch, limit, scale):
    monkeypatch.setattr(fused, "usable", lambda x: True)
    hidden, weight, targets = problem(150, 129, 50)
    targets[[0, 5, 36]] = -1
    generator = torch.Generator().manual_seed(1)
    weights = (torch.rand(150, generator=generator) * 3).to(DEVICE) * scale
    weights[10:40] = 0
    leaves = [each.float().requires_grad_() for each in (hidden, weight)]
    with torch.autocast(DEVICE, torch.float16):
        loss = cross_entropy(*leaves, targets, weights, chunk_elements=limit // 8)
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    losses = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="none", ignore_index=-1)
    shares = weights.double() * (targets >= 0)
    expected = (losses * shares).sum() / shares.sum()
    assert relative_error(loss.detach(), expected.detach()) < 1e-5
    gradients = torch.autograd.grad(loss, leaves)
    for value, other in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        assert relative_error(value, other) < 1e-3
    assert (gradients[0][10:40] == 0).all()


@pytest.mark.parametrize("limit", [1 << 12, 1 << 26], ids=["some", "one"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rows_have_losses_and_gradients_of_their_own(monkeypatch, limit, scale):
    monkeypatch.setattr(fused, "usable", lambda x: True)
    hidden, weight, targets = problem(150, 129, 50)
    targets[[0, 5, 36]] = -1
    generator = torch.Generator().manual_seed(1)
    counts = torch.rand(150, generator=generator).to(DEVICE) * scale
    counts[10:40] = 0
    leaves = [each.float().requires_grad_() for each in (hidden, weight)]
    with torch.autocast(DEVICE, torch.float16):
        losses = row_cross_entropy(*leaves, targets, chunk_elements=limit // 8)
    exact = [each.double().requires_grad_() for each in (hidden, weight)]
    expected = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="none", ignore_index=-1)
    assert relative_error(losses.detach(), expected.detach()) < 1e-5
    gradients = torch.autograd.grad(losses @ counts, leaves)
    wanted = torch.autograd.grad(expected @ counts.double(), exact)
    for value, other in zip(gradients, wanted, strict=True):
        assert relative_error(value, other) < 1e-3
    assert (gradients[0][10:40] == 0).all()


def test_large_logits():
    hidden, weight, targets = problem(40, 200, 16, scale=100.0)
    loss, _ = catalogue_loss.summed_cross_entropy(hidden, weight, targets, 1 << 20, False)
    expected = F.cross_entropy(hidden.double() @ weight.double().T, targets, reduction="sum")
    assert relative_error(loss, expected) < 1e-6


def test_the_loss_takes_the_kernels_where_it_may(monkeypatch):
    monkeypatch.setattr(fused, "usable", lambda x: True)
    hidden, weight, targets = problem(37, 129, 8)
    leaves = [each.float().requires_grad_() for each in (hidden, weight)]
    found = []
    kernel = catalogue_loss.summed_cross_entropy
    monkeypatch.setattr(
        catalogue_loss, "summed_cross_entropy", lambda *a: found.append(a) or kernel(*a)
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
