"""Implementations of Blossom attention, one folder each; :mod:`blossomrec.attention.api` picks.

A backend says what it takes and computes the operation; ``parts`` are what a layer does around it,
in plain PyTorch or as kernels. Backends never import each other; what those for a GPU share is in
``gpu``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from blossomrec.attention.backends.parts import Parts


@dataclass(frozen=True)
class Backend:
    """How a layer is computed, resolved once by :func:`blossomrec.attention.api.resolve`.

    Attributes:
        name: of the implementation of the operation.
        attend: ``(q, k, v, block_keys, gates, cu_seqlens, spec, selected)`` to the output and the
            selected blocks, see :func:`blossomrec.attention.blossom_attention`.
        parts: projections, block keys, distillation and kept histories.
    """

    name: str
    attend: Callable[..., tuple[Tensor, Tensor]]
    parts: Parts
