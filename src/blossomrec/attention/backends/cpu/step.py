"""New events over kept states, all users of a batch in one call of the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import Array, addressof, c_int64
from functools import cache

import torch
from torch import Tensor

from blossomrec.attention.backends.cpu.library import Step, library
from blossomrec.attention.rotary import frequencies, rotated_pairs
from blossomrec.attention.spec import BlossomSpec
from blossomrec.attention.state.attention_state import AttentionState


def extend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    counts: Sequence[int],
    states: Sequence[AttentionState],
    pool: Callable[[Tensor], Tensor],
    spec: BlossomSpec,
) -> tuple[Tensor, Tensor, list[AttentionState]]:
    """See :func:`blossomrec.attention.state.extend.extend`; all are float32 on the CPU."""
    rows, heads, size = q.shape
    groups, pairs = k.shape[1], rotated_pairs(size, spec.rotary_share)
    grown = [s.with_room(count) for s, count in zip(states, counts, strict=True)]
    q, k, v, gates = (x.contiguous() for x in (q, k, v, gates))
    out, selected = torch.empty_like(q), torch.empty(rows, groups, spec.top_n, dtype=torch.int32)
    users = _users(counts, grown)
    step = Step(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        gates.data_ptr(),
        _frequencies(pairs).data_ptr(),
        addressof(users),
        out.data_ptr(),
        selected.data_ptr(),
        rows,
        len(grown),
        groups,
        pairs,
        spec.top_n,
        spec.window,
        spec.sinks,
        torch.get_num_threads(),
    )
    functions = library(size, heads // groups, spec.block_size)
    functions.run("blossom_append", step)
    known = [state.num_blocks for state in states]
    if known != [state.num_blocks for state in grown]:
        grown = [state.with_blocks(old, pool) for state, old in zip(grown, known, strict=True)]
        users = _users(counts, grown)
        step.users = addressof(users)
    functions.run("blossom_step", step)
    return out, selected, grown


def _users(counts: Sequence[int], grown: list[AttentionState]) -> Array[c_int64]:
    """``struct User`` of each; the states already have room for the new events."""
    numbers = []
    for state, count in zip(grown, counts, strict=True):
        buffers = state.events.buffer.data_ptr(), state.blocks.buffer.data_ptr()
        numbers += *buffers, state.held - count, count, state.first
    return (c_int64 * len(numbers))(*numbers)


@cache
def _frequencies(pairs: int) -> Tensor:
    with torch.inference_mode(False):
        return frequencies(pairs, torch.float32, torch.device("cpu"))
