"""What a layer does around the operation, where the C++ operator does it better."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from blossomrec.attention.backends.cpu import operators, step
from blossomrec.attention.backends.parts import Parts
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.selector import Sample, selector_loss
from blossomrec.attention.spec import BlossomSpec


class CpuParts(Parts):
    """Distillation in one pass over the keys, and new events of all users in one call."""

    def keys_to_choose_by(
        self,
        compression: MeanCompression | MLPCompression,
        k: Tensor,
        cu_seqlens: Tensor,
        spec: BlossomSpec,
    ) -> Tensor:
        if torch.compiler.is_compiling():
            return self.block_keys(compression, k, cu_seqlens)
        # A perceptron for every block costs more than dense attention to a few blocks does.
        lengths = cu_seqlens.diff().long()
        blocks = lengths // spec.block_size
        has_choice = blocks > spec.top_n
        if bool(has_choice.all()):
            return self.block_keys(compression, k, cu_seqlens)
        rows, places = (
            has_choice.repeat_interleave(count).nonzero().flatten() for count in (lengths, blocks)
        )
        bounds = pad(lengths[has_choice].cumsum(0), (1, 0)).to(cu_seqlens.dtype)
        found = self.block_keys(compression, k.index_select(0, rows), bounds)
        keys = k.new_zeros(len(k) // spec.block_size, *k.shape[1:])
        return keys.index_copy(0, places, found[: len(places)].to(k.dtype))

    def selector_loss(
        self, q: Tensor, k: Tensor, block_keys: Tensor, cu_seqlens: Tensor, **given: Any
    ) -> Tensor:
        return selector_loss(q, k, block_keys, cu_seqlens, **given, shares=block_shares)

    def extend_layer(self, x, weights, output, gates, layer, step_, compression, spec, rotary=None):
        given = layer, step_, compression, spec, rotary
        return step.extend_layer(x, weights, output, gates, *given)


def block_shares(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, sample: Sample, spec: BlossomSpec
) -> Tensor:
    """See :func:`blossomrec.attention.selector.block_shares`."""
    bounds = cu_seqlens.to(torch.int32).contiguous()
    form = (sample.eligible.shape[-1], spec.block_size, spec.causal)
    return operators.block_shares(q, k, bounds, sample.rows, *form)
