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
from blossomrec.attention.spec import BlossomSpec, Inputs


@dataclass(frozen=True)
class Backend:
    """How a layer is computed, resolved once by :func:`blossomrec.attention.api.resolve`.

    Attributes:
        name: of the implementation of the operation.
        attend: inputs, definition and selected blocks, if given, to the output and the selected
            blocks, see :func:`blossomrec.attention.blossom_attention`.
        parts: projections, block keys, distillation and kept histories.
    """

    name: str
    attend: Callable[[Inputs, BlossomSpec, Tensor | None], tuple[Tensor, Tensor]]
    parts: Parts
