"""What graphs that are traced take as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def looked_up(function: Function) -> Function:
    """Have a graph hold what ``function`` gives while it is traced, not what it does.

    That is ``torch.compiler.assume_constant_result``, which also imports the whole compiler: about
    as much as the rest of PyTorch, in each process that starts.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function
