"""How rows of a table go from their gradient, and from having none, to new numbers."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

# What is kept of each row, by name: [K, ...].
State = dict[str, Tensor]


class Rule:
    """Base of the rules; the definition is that of a dense optimizer.

    Attributes:
        ratio: by which the movement of a row without a gradient shrinks from step to step; 0 where
            it does not move.
    """

    ratio: ClassVar[float] = 0.0

    def start(self, weight: nn.Parameter) -> State:
        """What is kept of all rows of ``weight`` [I, D] before the first step."""
        raise NotImplementedError

    def force(self, step: Tensor, rate: Tensor) -> Tensor:
        """How far :meth:`direction` moves a row at step ``step``, counted from 1: float64."""
        return rate

    def direction(self, state: State, step: Tensor) -> Tensor | None:
        """What rows go along, [K, D], by their state after ``step`` [K, 1] or []; None for nothing
        without a gradient."""
        return None

    def skipped(self, state: State, steps: Tensor) -> State:
        """The state after ``steps`` [K, 1] more steps without a gradient."""
        return state

    def update(
        self, weight: Tensor, gradient: Tensor, state: State, step: Tensor, force: Tensor
    ) -> tuple[Tensor, State]:
        """Rows [K, D] and their state after a step with a gradient."""
        raise NotImplementedError


class LazyAdamW(Rule):
    """AdamW of a table that does not decay, for the rows that are needed, when they are.

    Dense AdamW moves a row for a while after its last gradient. With v the mean of squares and m
    that of gradients after its last step a, at step a + j it moves by

        force(a + j) (b1 / sqrt(b2))^j m / (sqrt(v) + eps'),

    but for eps, which in the dense form does not shrink along with sqrt(v). The sum over the steps
    that were skipped is a number that rows of the same age share, so that a row that is needed
    again goes the whole way at once; m and v become b1^j m and b2^j v.
    """

    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    eps: ClassVar[float] = 1e-8
    ratio = 0.9 / math.sqrt(0.999)

    def start(self, weight):
        return {name: torch.zeros_like(weight.detach()) for name in ("exp_avg", "exp_avg_sq")}

    def force(self, step, rate):
        first, second = (1 - beta**step for beta in self.betas)
        return rate * second.sqrt() / first

    def direction(self, state, step):
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        # A row without any gradient so far does not move, whatever it is divided by.
        eps = self.eps * (1 - self.betas[1] ** step.clamp(min=1)).sqrt()
        return mean / (square.sqrt() + eps.to(mean.dtype))

    def skipped(self, state, steps):
        decayed = zip(state.items(), self.betas, strict=True)
        return {name: each * (beta**steps).to(each.dtype) for (name, each), beta in decayed}

    def update(self, weight, gradient, state, step, force):
        first, second = self.betas
        state = {
            "exp_avg": state["exp_avg"].lerp(gradient, 1 - first),
            "exp_avg_sq": second * state["exp_avg_sq"] + (1 - second) * gradient.square(),
        }
        direction = self.direction(state, step)
        return weight - direction * force.to(weight.dtype), state


class RowwiseAdaGrad(Rule):
    """AdaGrad with one number a row, the sum of the means of its squared gradients.

    A row goes by rate * gradient / (sqrt(sum) + eps); without a gradient nothing happens to it.
    """

    eps: ClassVar[float] = 1e-8

    def start(self, weight):
        return {"square_sum": weight.detach().new_zeros(len(weight))}

    def update(self, weight, gradient, state, step, force):
        total = state["square_sum"] + gradient.square().mean(1)
        scale = force.to(weight.dtype) / (total.sqrt() + self.eps)
        return weight - gradient * scale[:, None], {"square_sum": total}


RULES: dict[str, type[Rule]] = {"lazy_adamw": LazyAdamW, "rowwise_adagrad": RowwiseAdaGrad}
