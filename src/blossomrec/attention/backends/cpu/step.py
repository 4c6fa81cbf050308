"""New events over pages: a layer, for all users, in one call of the library, or two."""

from __future__ import annotations

import struct
from functools import cache

import torch
from torch import Tensor

from blossomrec.attention.backends.cpu.library import library
from blossomrec.attention.backends.parts import Projections
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.rotary import frequencies, rotated_pairs
from blossomrec.attention.spec import BlossomSpec, Heads
from blossomrec.attention.state import PagedLayer, Step, eager

# ``struct Step`` of ``source/step.h``: pointers, then numbers. For one event, filling a structure
# of ctypes takes longer than the projections.
CALL = struct.Struct("15P10q")


class LayerExtension:
    """See :meth:`blossomrec.attention.backends.parts.Parts.extension`; float32 on the CPU.

    What is the same for all events is looked up here, once.
    """

    def __init__(
        self,
        weights: Projections,
        output: Tensor,
        heads: Heads,
        compression: MeanCompression | MLPCompression,
        spec: BlossomSpec,
    ):
        given = (*weights, output)
        # Held, for there may be copies among them.
        self._weights = [each if each is None else each.contiguous() for each in given]
        self._starts = [0 if each is None else each.data_ptr() for each in self._weights]
        pairs = rotated_pairs(heads.size, spec.rotary_share)
        self._frequencies = _frequencies(pairs)
        self._start_of_frequencies = self._frequencies.data_ptr()
        self._compression, self._pairs = compression, pairs
        self._gates = heads.queries, spec.gate_size
        self._chosen = heads.keys, spec.top_n
        self._numbers = spec.top_n, spec.window, spec.sinks, spec.is_union
        self._library = library(heads.size, heads.per_group, spec.block_size)

    def __call__(
        self,
        x: Tensor,
        gates: Tensor | None,
        layer: PagedLayer,
        step: Step,
        rotary: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (events, size), x, pairs, angles = x.shape, x.contiguous(), self._pairs, 0
        gates = x.new_empty(events, *self._gates) if gates is None else gates.contiguous()
        if rotary is not None:
            rotary = rotary.float().contiguous()
            pairs, angles = rotary.shape[2], rotary.data_ptr()
        hidden, selected = torch.empty_like(x), step.table.new_empty(events, *self._chosen)
        call = CALL.pack(
            x.data_ptr(),
            *self._starts,
            gates.data_ptr(),
            self._start_of_frequencies,
            angles,
            layer.pages.data_ptr(),
            layer.block_keys.data_ptr(),
            step.table.data_ptr(),
            hidden.data_ptr(),
            selected.data_ptr(),
            events,
            size,
            step.table.shape[1],
            self._chosen[0],
            pairs,
            *self._numbers,
            torch.get_num_threads(),
        )
        call += step.host.tobytes()
        if step.closes:
            self._library.step("blossom_append", call, events)
            eager.close_blocks(layer, step, self._compression)
            self._library.step("blossom_step", call, events)
        else:
            self._library.step("blossom_extend", call, events)
        return hidden, selected, gates


@cache
def _frequencies(pairs: int) -> Tensor:
    with torch.inference_mode(False):
        return frequencies(pairs, torch.float32, torch.device("cpu"))
