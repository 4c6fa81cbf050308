"""The kernels of the selective scan against PyTorch, interpreted where there is no GPU."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from blossomrec.models.peers import scan_kernels
from blossomrec.models.peers.scan_kernels import kernel_scan
from blossomrec.models.peers.selective_scan import Scanned, selective_scan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def draw(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE)


def relative_error(value, exact):
    value, exact = value.detach().double(), exact.detach()
    return float((value - exact).norm() / exact.norm().clamp(min=1e-30))


@pytest.mark.parametrize(
    "lengths, channels, size",
    [([1], 4, 1), ([9, 0, 14], 5, 2), ([3, 40, 1, 0], 4, 3), ([8, 8, 16], 9, 2)],
    ids=str,
)
def test_parity_with_pytorch(lengths, channels, size, monkeypatch):
    if DEVICE == "cpu":
        # Interpreted, every number takes its time.
        monkeypatch.setattr(scan_kernels, "ROWS", 8)
        monkeypatch.setattr(scan_kernels, "COLUMNS", 4)
    total = sum(lengths)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    goes_on = torch.ones(total + 1).index_fill(0, bounds[:-1].long(), 0)[:total].to(DEVICE)
    leaves = [
        draw(total, channels, seed=0),
        F.softplus(2 * draw(total, channels, seed=1) - 2),
        -draw(channels, size, seed=2).exp(),
        draw(total, size, seed=3),
        draw(total, size, seed=4),
    ]
    leaves = [each.requires_grad_() for each in leaves]
    single = [each.detach().float().requires_grad_() for each in leaves]
    exact = selective_scan(Scanned(*leaves), bounds.to(DEVICE))
    found = kernel_scan(Scanned(*single), goes_on)
    assert relative_error(found, exact) < 1e-5
    grad = draw(total, channels, seed=9)
    expected = torch.autograd.grad(exact, leaves, grad)
    for each, right in zip(torch.autograd.grad(found, single, grad.float()), expected, strict=True):
        # Of a single event some gradients are zero.
        assert (each - right).norm() < 1e-5 * right.norm().clamp(min=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("lengths", [[5000], [200] * 20, [63, 0, 111, 1, 4096]], ids=str)
def test_many_events_on_a_gpu(lengths):
    total, channels, size = sum(lengths), 70, 16
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32).cuda()
    leaves = [
        draw(total, channels, seed=0),
        F.softplus(draw(total, channels, seed=1) - 4),
        -draw(channels, size, seed=2).exp(),
        draw(total, size, seed=3),
        draw(total, size, seed=4),
    ]
    leaves = [each.requires_grad_() for each in leaves]
    single = [each.detach().float().requires_grad_() for each in leaves]
    exact = selective_scan(Scanned(*leaves), bounds, may_fuse=False)
    found = selective_scan(Scanned(*single), bounds)
    assert relative_error(found, exact) < 1e-5
    grad = draw(total, channels, seed=9)
    expected = torch.autograd.grad(exact, leaves, grad)
    for each, right in zip(torch.autograd.grad(found, single, grad.float()), expected, strict=True):
        assert relative_error(each, right) < 1e-5
