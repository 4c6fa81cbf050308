"""How functions become operators of PyTorch that cost little each time they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from blossomrec.attention.spec import BlossomSpec

_library = torch.library.Library("blossomrec", "FRAGMENT")


def operator(fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Register a function of tensors, whose annotations are its schema, under its module and name.

    ``torch.library.custom_op`` does the same and also looks at every result for aliases of the
    arguments, each time: for kernels of microseconds that is the larger part.

    Args:
        fake: gives empty results of the right sizes, for tracing.
    """

    def register(function: Callable[..., Any]) -> Any:
        name = f"{function.__module__.split('.')[-2]}_{function.__name__}"
        schema = torch.library.infer_schema(function, mutates_args=(), op_name=name)
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"blossomrec::{name}", fake, lib=_library)
        return getattr(torch.ops.blossomrec, name).default

    return register


def numbers_of(spec: BlossomSpec) -> list[int]:
    """What kernels need of the definition, as operators take it: block_size, top_n, window, sinks,
    causal and is_union."""
    numbers = [spec.block_size, spec.top_n, spec.window, spec.sinks]
    return [*numbers, int(spec.causal), int(spec.is_union)]


def empty_gradients(grad, given, kept, numbers):
    """What an attention's backward operator gives, empty: for :func:`operator`."""
    return tuple(x.new_empty(x.shape) for x in given[:4])


def register_gradient(attend: str, backward: Callable[..., Any], kept: int) -> None:
    """Let the gradients of an attention operator come from another operator.

    Args:
        attend: name of the operator; it takes tensors, q, k, v and gates first, and a list of
            numbers.
        backward: takes the gradient of the first result, the tensors, the last results, and the
            numbers; gives the gradients of q, k, v and gates.
        kept: how many of the last results are kept for it.
    """

    def save(ctx, inputs, output) -> None:
        *given, ctx.numbers = inputs
        ctx.save_for_backward(*given, *output[-kept:])
        ctx.set_materialize_grads(False)

    def differentiate(ctx, grad, *others):
        given, results = ctx.saved_tensors[:-kept], ctx.saved_tensors[-kept:]
        missing = (None,) * (len(given) + 1)
        if grad is None:
            return missing
        found = backward(grad, list(given), list(results), ctx.numbers)
        return *found, *missing[len(found) :]

    torch.library.register_autograd(
        f"blossomrec::{attend}", differentiate, setup_context=save, lib=_library
    )


def register_opposite(name: str, function: Callable[..., Any]) -> None:
    """Let the gradients of an operator come from itself, the other way round.

    Args:
        name: of the operator; it takes a tensor that gets a gradient, one that gets none, which way
            round, and more.
    """

    def save(ctx, inputs, output) -> None:
        _, given, ctx.back, *ctx.others = inputs
        ctx.save_for_backward(given)

    def differentiate(ctx, grad):
        found = function(grad, *ctx.saved_tensors, not ctx.back, *ctx.others)
        return found, None, None, *(None for _ in ctx.others)

    torch.library.register_autograd(
        f"blossomrec::{name}", differentiate, setup_context=save, lib=_library
    )
