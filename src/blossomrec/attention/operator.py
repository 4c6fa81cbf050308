"""How a function becomes an operator of PyTorch that costs little each time it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

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
