# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""Layer norm of a residual connection: norm(x + dropout(branch + bias)) in one pass.

Nothing but the two summands is kept for the backward pass, which makes sum, statistics and dropout
mask again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from blossomrec.attention.backends.gpu.products import (
    PROGRAMS,
    TILE_ELEMENTS,
    cdiv,
    compute_dtype,
    next_power_of_2,
)
from blossomrec.models.fused.dropout import constants, draw_seed
from blossomrec.models.fused.kernels.norm import add_norm_backward_kernel, add_norm_kernel


def forward(
    x: Tensor,
    branch: Tensor | None,
    bias: Tensor | None,
    norm: nn.LayerNorm,
    p: float,
    seed: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """See :func:`add_norm`; without a gradient. No branch: the norm of x alone."""
    out = x.new_empty(x.shape, dtype=dtype)
    form = _form(x, branch, bias, p)
    grid = (cdiv(len(x), form["ROWS"]),)
    if len(x):
        add_norm_kernel[grid](
            x, branch, bias, norm.weight, norm.bias, seed, out, *x.shape, norm.eps, **form
        )
    return out


def backward(
    grad: Tensor,
    x: Tensor,
    branch: Tensor | None,
    bias: Tensor | None,
    norm: nn.LayerNorm,
    p: float,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and of the branch, empty without one, and float32 [3, D]: of the norm's weight
    and bias, of ``bias``."""
    grad_x = torch.empty_like(x)
    grad_branch = x.new_empty(0) if branch is None else torch.empty_like(branch)
    form = _form(x, branch, bias, p)
    programs = min(PROGRAMS, cdiv(len(x), form["ROWS"]))
    sums = x.new_empty(programs, 3, x.shape[1], dtype=torch.float32)
    if len(x):
        add_norm_backward_kernel[(programs,)](
            grad.contiguous(),
            x,
            branch,
            bias,
            norm.weight,
            seed,
            grad_x,
            grad_branch,
            sums,
            *x.shape,
            norm.eps,
            **form,
        )
    return grad_x, grad_branch, sums.sum(0)


def add_norm(x: Tensor, branch: Tensor, norm: nn.LayerNorm, p: float) -> Tensor:
    """norm(x + dropout(branch)).

    Args:
        x, branch: [T, D], of any types the kernels take.
        norm: over D, with weight and bias.
        p: probability of dropout, 0 where there is none.

    Returns:
        [T, D] in the type of autocast, or of ``x`` without.
    """
    return _AddNorm.apply(x.contiguous(), branch.contiguous(), norm.weight, norm.bias, norm, p)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, branch, weight, shift, norm, p):
        seed = draw_seed(x.device) if p else x.new_empty(0)
        ctx.save_for_backward(x, branch, seed)
        ctx.norm, ctx.p = norm, p
        return forward(x, branch, None, norm, p, seed, compute_dtype(x))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, branch, seed = ctx.saved_tensors
        grad_x, grad_branch, sums = backward(grad, x, branch, None, ctx.norm, ctx.p, seed)
        return grad_x, grad_branch, sums[0], sums[1], None, None


def layer_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """norm(x), [T, D] in the type of ``x``, whatever autocast says; the norm has a bias.

    One kernel finds the gradients of x, weight and bias together.
    """
    return _LayerNorm.apply(x.contiguous(), norm.weight, norm.bias, norm)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, shift, norm):
        ctx.save_for_backward(x)
        ctx.norm = norm
        return forward(x, None, None, norm, 0.0, x.new_empty(0), x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        grad_x, _, sums = backward(grad, x, None, None, ctx.norm, 0.0, x.new_empty(0))
        return grad_x, sums[0], sums[1], None


def _form(
    x: Tensor, branch: Tensor | None, bias: Tensor | None, p: float
) -> dict[str, int | float | bool]:
    block = max(8, next_power_of_2(x.shape[1]))
    rows = max(1, TILE_ELEMENTS // block)
    given = {"HAS_BRANCH": branch is not None, "HAS_BIAS": bias is not None}
    return {**given, "ROWS": rows, "BLOCK": block, **constants(p)}
