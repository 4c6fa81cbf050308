"""The compiled operator: its functions, and the structures that tell them what to compute.

Its switch turns off whatever else of the library is compiled C++ for processors, too: the ranking
by vectors in 8 bits (``models/fused/quantised_items.py``).
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

from blossomrec.attention.backends.code_cache import NotBuiltError
from blossomrec.attention.backends.cpu.compiler import build
from blossomrec.attention.backends.tracing import looked_up

# Set to 0, nothing is compiled for processors, or used.
SWITCH = "BLOSSOMREC_CPU_BACKEND"


def fields_of(pointers: str, numbers: str) -> list[tuple[str, type]]:
    """Fields of a structure: names of pointers, then of integers of 64 bits."""
    fields: list[tuple[str, type]] = [(name, ctypes.c_void_p) for name in pointers.split()]
    return fields + [(name, ctypes.c_int64) for name in numbers.split()]


class Problem(ctypes.Structure):
    """``struct Problem`` of ``source/problem.h``, which says what the fields are.

    What pointers lead to is contiguous, on the CPU, and outlives the call.
    """

    _fields_ = fields_of(
        "q k v block_keys gates cu_seqlens selected lse out "
        "grad grad_q grad_k grad_v grad_gates means samples shares",
        "rows histories groups top_n window sinks causal is_union threads count blocks "
        "short_length wrong",
    )


class Rotation(ctypes.Structure):
    """``struct Rotation`` of ``source/rotation.h``, which says what the fields are."""

    _fields_ = fields_of("x angles to", "rows heads pairs back threads")


class Library:
    """The functions compiled for one shape of heads."""

    def __init__(self, head_dim: int, per_group: int, block_size: int):
        path = build(HEAD_SIZE=head_dim, HEADS_PER_GROUP=per_group, BLOCK_SIZE=block_size)
        try:
            self._functions = ctypes.CDLL(str(path))
        except OSError as error:
            raise NotBuiltError(f"{path} cannot be loaded: {error}") from error

    def run(self, name: str, problem: Problem | Rotation) -> None:
        """Call a function of the library; the interpreter's lock is free meanwhile.

        Raises:
            MemoryError: there is no memory for the function's own tables.
            ValueError: ``cu_seqlens``, a selected block, a sample or the number of blocks is wrong.
        """
        status = getattr(self._functions, name)(ctypes.byref(problem))
        if not status:
            return
        if status == 1:
            raise MemoryError(f"no memory for {problem.rows} rows of Blossom attention")
        if status == 2:
            raise ValueError(f"cu_seqlens does not rise from 0 to {problem.rows}, the rows of q")
        if status == 3:
            raise ValueError(
                f"selected has a block in row {problem.wrong} that is not complete, not eligible "
                "or not of that history"
            )
        if status == 4:
            raise ValueError(f"a sample is row {problem.wrong}, there are {problem.rows}")
        if status == 5:
            raise ValueError(f"there are more than {problem.blocks} blocks in the longest history")

    def step(self, name: str, call: bytes, rows: int) -> None:
        """Call a function of new events with the bytes of a ``struct Step``.

        Raises:
            MemoryError: there is no memory for the function's own tables.
        """
        if getattr(self._functions, name)(call):
            raise MemoryError(f"no memory for {rows} new events of Blossom attention")


def library(head_dim: int, per_group: int, block_size: int) -> Library:
    """The library for heads of a size, query heads a key/value head, and events in a block.

    Raises:
        NotBuiltError: it is switched off, or cannot be compiled or loaded.
    """
    found = _find(head_dim, per_group, block_size)
    if isinstance(found, str):
        raise NotBuiltError(found)
    return found


# While a graph is traced the answer is looked up, not traced itself.
@looked_up
def missing(head_dim: int, per_group: int, block_size: int) -> str:
    """Why there is no library for such heads; empty where there is one."""
    found = _find(head_dim, per_group, block_size)
    return found if isinstance(found, str) else ""


@cache
def _find(head_dim: int, per_group: int, block_size: int) -> Library | str:
    """The library, or why there is none: a compiler that failed once is not asked again."""
    if os.environ.get(SWITCH) == "0":
        return f"it is switched off by {SWITCH}=0"
    try:
        return Library(head_dim, per_group, block_size)
    except NotBuiltError as error:
        return str(error)
