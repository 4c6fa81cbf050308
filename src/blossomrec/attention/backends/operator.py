"""How functions become operators of PyTorch that cost little each time they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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


def empty_gradients(grad, q, k, v, gates, *others):
    """What an attention's backward operator gives, empty: for :func:`operator`."""
    return tuple(x.new_empty(x.shape) for x in (q, k, v, gates))


def register_gradient(attend: str, backward: Callable[..., Any], kept: int) -> None:
    """Let the gradients of an attention operator come from another operator.

    Args:
        attend: name of the operator; its arguments are tensors, q, k, v and gates first, then
            numbers.
        backward: takes the gradient of the first result, all tensors, the last results, and the
            numbers; gives the gradients of q, k, v and gates.
        kept: how many of the last results are kept for it.
    """

    def save(ctx, inputs, output) -> None:
        tensors = [each for each in inputs if isinstance(each, Tensor)]
        ctx.save_for_backward(*tensors, *output[-kept:])
        ctx.numbers, ctx.count = inputs[len(tensors) :], len(inputs)
        ctx.set_materialize_grads(False)

    def differentiate(ctx, grad, *others):
        given = () if grad is None else backward(grad, *ctx.saved_tensors, *ctx.numbers)
        return *given, *(None,) * (ctx.count - len(given))

    torch.library.register_autograd(
        f"blossomrec::{attend}", differentiate, setup_context=save, lib=_library
    )
