"""New events over pages: a layer, for all users, in two calls of the library."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from blossomrec.attention.backends.cpu.library import Step as Call
from blossomrec.attention.backends.cpu.library import library
from blossomrec.attention.backends.parts import Projections
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.rotary import frequencies, rotated_pairs
from blossomrec.attention.spec import BlossomSpec
from blossomrec.attention.state import PagedLayer, Step, eager


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
    layout, events, heads = layer.layout, len(x), weights.query.shape[0] // layer.layout.size
    groups, size, pairs = layout.heads, layout.size, rotated_pairs(layout.size, spec.rotary_share)
    x, output = x.contiguous(), output.contiguous()
    given = [None if each is None else each.contiguous() for each in weights]
    gates = x.new_empty(events, heads, spec.gate_size) if gates is None else gates.contiguous()
    if rotary is not None:
        rotary, pairs = rotary.float().contiguous(), rotary.shape[2]
    selected = torch.empty(events, groups, spec.top_n, dtype=torch.int32)
    hidden = torch.empty_like(x)
    call = Call(
        x.data_ptr(),
        *(None if each is None else each.data_ptr() for each in given),
        output.data_ptr(),
        gates.data_ptr(),
        _frequencies(pairs).data_ptr(),
        None if rotary is None else rotary.data_ptr(),
        layer.pages.data_ptr(),
        layer.block_keys.data_ptr(),
        step.table.data_ptr(),
        step.numbers.data_ptr(),
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
        spec.is_union,
        torch.get_num_threads(),
    )
    functions = library(size, heads // groups, spec.block_size)
    if step.closes:
        functions.run("blossom_append", call)
        eager.close_blocks(layer, step, compression)
        functions.run("blossom_step", call)
    else:
        functions.run("blossom_extend", call)
    return hidden, selected, gates


@cache
def _frequencies(pairs: int) -> Tensor:
    with torch.inference_mode(False):
        return frequencies(pairs, torch.float32, torch.device("cpu"))
