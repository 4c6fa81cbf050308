# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""The arithmetic of a table's rows by kernels, for AdamW that follows later.

See ``training.sparse.table`` for what is computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from blossomrec.attention.backends.gpu.products import cdiv, next_power_of_2
from blossomrec.models.fused.kernels.lazy_adamw import age_kernel, catch_up_kernel, step_kernel

# Numbers of a tile of rows.
TILE = 1_024


@dataclass(frozen=True)
class LazyRows:
    """Rows of a table, which are changed in place.

    Attributes:
        rows: int64 [K]; the same one may stand there several times.
        own: int64 [K], at which slot each has its row first.
        weight: [I, D].
        means, squares: what AdamW keeps, [I, D].
        average: of the weights, [I, D], or None.
        seen: int64 [I], up to which update each row is as it should be.
        updates, steps: how many there have been, scalars, int64 and float32.
        betas, eps: of AdamW.
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
    betas: tuple[float, float]
    eps: float

    def catch_up(self, moved: Tensor, left: Tensor, behind: Tensor) -> Tensor:
        """Bring the rows up to date, and give each at its first slot, zeros at others, [K, D].

        Args:
            moved, left, behind: by age, float64 [ages]: how far rows have moved along their
                direction, what is left of the average, how far that is behind.
        """
        logs = {"LOG_FIRST": math.log2(self.betas[0]), "LOG_SECOND": math.log2(self.betas[1])}
        out = self.weight.new_empty(len(self.rows), self.weight.shape[1])
        given = moved, left, behind, out, len(self.rows)
        catch_up_kernel[self._grid](*self._tensors, *given, **logs, **self._constants)
        return out

    def step(
        self,
        gradient: Tensor,
        moved: Tensor,
        left: Tensor,
        behind: Tensor,
        *,
        rate: float | Tensor,
        factor: float,
        decay: float,
    ) -> None:
        """Count a step, take it with the rows, which are up to date, and let the others grow older.

        Args:
            gradient: [K, D]; of a row it is the one at its first slot.
            moved, left, behind: as of :meth:`catch_up`, changed in place.
            rate: learning rate; a tensor is looked at when the step is taken.
            factor: that it is multiplied by.
            decay: of the average, at most.
        """
        first, second = self.betas
        betas = {"FIRST": first, "SECOND": second, "LOG_SECOND": math.log2(second)}
        if not isinstance(rate, Tensor):
            rate = moved.new_full((), rate)
        ages, average = len(moved), self.average is not None
        # How far rows go along their direction, and the decay of the average at this step.
        now = moved.new_empty(2)
        logs = {"FIRST": math.log(first), "SECOND": math.log(second)}
        form = {"FACTOR": factor, "DECAY": decay, "AVERAGE": average}
        counted = self.updates, self.steps, rate
        block = next_power_of_2(ages)
        by_age = moved, left, behind, now, ages
        age_kernel[(1,)](*counted, *by_age, BLOCK=block, **logs, **form)
        given = gradient.contiguous(), now, len(self.rows)
        step_kernel[self._grid](*self._tensors, *given, **betas, **self._constants)

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        # Where there is no average, what stands in its place is not looked at.
        average = self.weight if self.average is None else self.average
        kept = self.weight, self.means, self.squares, average
        return (self.rows, self.own, *kept, self.seen, self.updates, self.steps)

    @property
    def _constants(self) -> dict[str, Any]:
        size = self.weight.shape[1]
        shape = {"D": size, "D_BLOCK": max(16, next_power_of_2(size)), "ROWS": self._height}
        return {**shape, "EPS": self.eps, "AVERAGE": self.average is not None}

    @property
    def _height(self) -> int:
        return max(1, TILE // max(16, next_power_of_2(self.weight.shape[1])))

    @property
    def _grid(self) -> tuple[int]:
        return (cdiv(len(self.rows), self._height),)
