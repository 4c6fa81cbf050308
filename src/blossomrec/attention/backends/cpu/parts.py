"""What a layer does around the operation, where the C++ operator does it better."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blossomrec.attention.backends.cpu import operators, step
from blossomrec.attention.backends.parts import Parts
from blossomrec.attention.selector import Sample, selector_loss
from blossomrec.attention.spec import BlossomSpec


class CpuParts(Parts):
    """Distillation in one pass over the keys, and new events of all users in one call."""

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
