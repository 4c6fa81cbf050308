"""New events over pages: a layer, for all users, in two calls of the library."""

from __future__ import annotations

import struct
from functools import cache

import torch
from torch import Tensor

from blossomrec.attention.backends.cpu.library import library
from blossomrec.attention.backends.parts import Projections
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.rotary import frequencies, rotated_pairs
from blossomrec.attention.spec import BlossomSpec
from blossomrec.attention.state import PagedLayer, Step, eager

# ``struct Step`` of ``source/step.h``: pointers, then numbers. Of one event a structure of ctypes
# would take longer to fill than the projections do.
CALL = struct.Struct("15P10q")


def extend_layer(
    x: Tensor,
    weights: Projections,
    output: Tensor,
    gates: Tensor | None,
    layer: PagedLayer,
    step: Step,
    compression: MeanCompression | MLPCompression,
    spec: BlossomSpec,
    rotary: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :meth:`blossomrec.attention.backends.parts.Parts.extend_layer`; float32 on the CPU."""
    layout, events = layer.layout, x.shape[0]
    groups, size, per = layout.heads, layout.size, spec.gate_size
    heads, pairs = weights.query.shape[0] // size, rotated_pairs(size, spec.rotary_share)
    x, output, pages = x.contiguous(), output.contiguous(), layer.pages
    query, key, value, gate, bias = weights
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    if gate is not None and bias is not None:
        gate, bias = gate.contiguous(), bias.contiguous()
    gates = x.new_empty(events, heads, per) if gates is None else gates.contiguous()
    if rotary is not None:
        rotary, pairs = rotary.float().contiguous(), rotary.shape[2]
    hidden, selected = torch.empty_like(x), step.table.new_empty(events, groups, spec.top_n)
    call = CALL.pack(
        x.data_ptr(),
        query.data_ptr(),
        key.data_ptr(),
        value.data_ptr(),
        0 if gate is None else gate.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        output.data_ptr(),
        gates.data_ptr(),
        _frequencies(pairs).data_ptr(),
        0 if rotary is None else rotary.data_ptr(),
        pages.data_ptr(),
        layer.block_keys.data_ptr(),
        step.table.data_ptr(),
        hidden.data_ptr(),
        selected.data_ptr(),
        events,
        x.shape[1],
        step.table.shape[1],
        groups,
        pairs,
        spec.top_n,
        spec.window,
        spec.sinks,
        per == 1,
        torch.get_num_threads(),
    )
    call += step.host.tobytes()
    functions = library(size, heads // groups, spec.block_size)
    if step.closes:
        functions.step("blossom_append", call, events)
        eager.close_blocks(layer, step, compression)
        functions.step("blossom_step", call, events)
    else:
        functions.step("blossom_extend", call, events)
    return hidden, selected, gates


@cache
def _frequencies(pairs: int) -> Tensor:
    with torch.inference_mode(False):
        return frequencies(pairs, torch.float32, torch.device("cpu"))
