"""The selective scan by Triton kernels: launches, and what autograd needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blossomrec.attention.backends.gpu.products import cdiv
from blossomrec.models.peers.kernels.scan import (
    carry_kernel,
    ends_kernel,
    scan_backward_kernel,
    scan_kernel,
    slopes_kernel,
)

if TYPE_CHECKING:
    from blossomrec.models.peers.selective_scan import Scanned

# Events and channels of a program, and numbers of states that one carries from chunk to chunk.
ROWS, COLUMNS, CARRIED = 64, 16, 128


def kernel_scan(scanned: Scanned, goes_on: Tensor) -> Tensor:
    """The scan, [T, E], of float32 tensors; see :func:`selective_scan`."""
    return cast(Tensor, _KernelScan.apply(*scanned, goes_on))


class _KernelScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, rates, b, c, goes_on):
        given = [x.contiguous() for x in (u, delta, rates, b, c, goes_on)]
        u, delta, rates, b, c, goes_on = given
        out, form = torch.empty_like(u), _Form(u, rates)
        carried, left = (u.new_empty(form.chunks, *rates.shape) for _ in range(2))
        if len(u):
            ends_kernel[form.grid](u, delta, rates, b, goes_on, carried, left, **form.sizes)
            _carry(carried, left, back=False)
            scan_kernel[form.grid](u, delta, rates, b, c, goes_on, carried, out, **form.sizes)
        ctx.save_for_backward(*given, carried, left)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        u, delta, rates, b, c, goes_on, carried, left = ctx.saved_tensors
        grad, form = grad.contiguous(), _Form(u, rates)
        follows, by_rates = (torch.zeros_like(carried) for _ in range(2))
        by_u, by_delta = torch.empty_like(u), torch.empty_like(u)
        by_b, by_c = (b.new_zeros(form.grid[1], *b.shape) for _ in range(2))
        if len(u):
            slopes_kernel[form.grid](grad, delta, rates, c, goes_on, follows, **form.sizes)
            _carry(follows, left, back=True)
            scan_backward_kernel[form.grid](
                grad,
                u,
                delta,
                rates,
                b,
                c,
                goes_on,
                carried,
                follows,
                by_u,
                by_delta,
                by_rates,
                by_b,
                by_c,
                **form.sizes,
            )
        return by_u, by_delta, by_rates.sum(0), by_b.sum(0), by_c.sum(0), None


class _Form:
    """How a scan of [T, E] channels with rates [E, N] is cut into programs."""

    def __init__(self, u: Tensor, rates: Tensor):
        self.chunks = cdiv(len(u), ROWS)
        self.grid = self.chunks, cdiv(u.shape[1], COLUMNS)
        self.sizes: dict[str, Any] = {
            "total": len(u),
            "channels": u.shape[1],
            "size": rates.shape[1],
            "ROWS": ROWS,
            "COLUMNS": COLUMNS,
        }


def _carry(ends: Tensor, left: Tensor, *, back: bool) -> None:
    chunks, numbers = len(ends), ends[0].numel()
    grid, form = (cdiv(numbers, CARRIED),), {"BACK": back, "BLOCK": CARRIED}
    carry_kernel[grid](ends, left, chunks, numbers, **form)
