"""New events over pages, those of all users in one call of the library."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from blossomrec.attention.backends.cpu.library import Step as Call
from blossomrec.attention.backends.cpu.library import library
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.rotary import frequencies, rotated_pairs
from blossomrec.attention.spec import BlossomSpec
from blossomrec.attention.state import PagedLayer, Step, eager


def extend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    layer: PagedLayer,
    step: Step,
    compression: MeanCompression | MLPCompression,
    spec: BlossomSpec,
    rotary: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See :meth:`blossomrec.attention.backends.parts.Parts.extend`; all are float32 on the CPU."""
    events, heads, size = q.shape
    groups, pairs = k.shape[1], rotated_pairs(size, spec.rotary_share)
    q, k, v, gates = (x.contiguous() for x in (q, k, v, gates))
    if rotary is not None:
        rotary, pairs = rotary.float().contiguous(), rotary.shape[2]
    out, selected = torch.empty_like(q), torch.empty(events, groups, spec.top_n, dtype=torch.int32)
    call = Call(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        gates.data_ptr(),
        _frequencies(pairs).data_ptr(),
        0 if rotary is None else rotary.data_ptr(),
        layer.pages.data_ptr(),
        layer.block_keys.data_ptr(),
        step.table.data_ptr(),
        step.numbers.data_ptr(),
        out.data_ptr(),
        selected.data_ptr(),
        events,
        step.table.shape[1],
        groups,
        pairs,
        spec.top_n,
        spec.window,
        spec.sinks,
        int(spec.is_union),
        torch.get_num_threads(),
    )
    functions = library(size, heads // groups, spec.block_size)
    functions.run("blossom_append", call)
    eager.close_blocks(layer, step, compression)
    functions.run("blossom_step", call)
    return out, selected


@cache
def _frequencies(pairs: int) -> Tensor:
    with torch.inference_mode(False):
        return frequencies(pairs, torch.float32, torch.device("cpu"))
