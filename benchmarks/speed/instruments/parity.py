"""Whether what is to be timed computes what it should: asked before anything is timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Relative error of a result in the type that it was computed in.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 5e-3}


class Check(NamedTuple):
    """An error beside the largest one that is allowed."""

    name: str
    error: float
    tolerance: float

    @property
    def red(self) -> bool:
        """Also where the error is not a number."""
        return not self.error <= self.tolerance


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    expected = expected.detach().double()
    difference = (value.detach().double() - expected).norm()
    return float(difference / expected.norm().clamp(min=torch.finfo(torch.float64).tiny))


def largest_error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The worst relative error; NaN where there is one."""
    errors = [relative_error(*pair) for pair in zip(values, expected, strict=True)]
    return float(torch.tensor(errors, dtype=torch.float64).max())
