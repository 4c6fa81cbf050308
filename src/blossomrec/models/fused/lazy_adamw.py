# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""The arithmetic of a table's rows by kernels, for AdamW that follows later.

See ``training.sparse.table`` for what is computed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from blossomrec.attention.backends.gpu.products import cdiv, next_power_of_2
from blossomrec.models.fused.kernels.lazy_adamw import catch_up_kernel, step_kernel

# Numbers of a tile of rows.
TILE = 1_024


class Rows(NamedTuple):
    """A table, and which of its rows are meant.

    Attributes:
        rows: int64 [K]; the same one may stand there several times.
        own: int64 [K], at which slot each has its row first.
        weight: [I, D].
        means, squares: what AdamW keeps, [I, D].
        average: [I, D], or None.
        seen: int64 [I], up to which update each row is as it should be.
        updates, steps: how many there have been, scalars.
    """

    rows: Tensor
    own: Tensor
    weight: Tensor
    means: Tensor
    squares: Tensor
    average: Tensor | None
    seen: Tensor
    updates: Tensor
    steps: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        # Not looked at where there is none.
        return [self.weight if each is None else each for each in self]


def catch_up(
    table: Rows,
    by_age: tuple[Tensor, Tensor, Tensor],
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Bring rows up to date.

    Args:
        by_age: how far rows have moved, what is left of the average, how far it is behind.
        betas, eps: of AdamW.
    """
    shape, grid = _shape(table)
    logs = {"LOG_FIRST": math.log2(betas[0]), "LOG_SECOND": math.log2(betas[1])}
    catch_up_kernel[grid](*table.tensors, *by_age, len(table.rows), EPS=eps, **logs, **shape)


def step(
    table: Rows,
    gradient: Tensor,
    force: Tensor,
    decay: Tensor | None,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """A step of rows that are up to date.

    Args:
        gradient: [K, D]; of a row it is the one at its first slot.
        force: how far rows go along their direction, a scalar.
        decay: of the average, a scalar; None without one.
    """
    shape, grid = _shape(table)
    known = {"FIRST": betas[0], "SECOND": betas[1], "LOG_SECOND": math.log2(betas[1]), "EPS": eps}
    scalars = force, force if decay is None else decay
    given = gradient.contiguous(), *scalars, len(table.rows)
    step_kernel[grid](*table.tensors, *given, **known, **shape)


def _shape(table: Rows) -> tuple[dict[str, int], tuple[int]]:
    size = table.weight.shape[1]
    width = max(16, next_power_of_2(size))
    height = max(1, TILE // width)
    shape = {"D": size, "D_BLOCK": width, "ROWS": height, "AVERAGE": table.average is not None}
    return shape, (cdiv(len(table.rows), height),)
