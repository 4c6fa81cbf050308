"""One update of the weights by all ranks."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from blossomrec.training.objective import Step
from blossomrec.training.setup import Parts
from blossomrec.training.sharded.division import SharedStep
from blossomrec.training.state import seed_everything
from blossomrec.training.update import Update, Values


class ShardedUpdate(Update):
    """As :class:`Update`; gradients of what every rank has are summed, in float32 and at once.

    What is drawn in a step depends on the seed, the step and the rank alone.
    """

    def __init__(self, parts: Parts, clip_norm: float):
        super().__init__(parts, clip_norm)
        held = parts.model.item_embeddings.weight
        self.held = cast(nn.Parameter, held)
        trained = [one for one in parts.model.parameters() if one.requires_grad]
        self.common = [one for one in trained if one is not held]
        self._known = False

    def start(self, step: Step) -> None:
        # A graph that is replayed begins at the seed and the place of the generator as they are.
        seed_everything(cast(SharedStep, step).seed, self.parts.fabric.device)

    def _reduced(self, values: Values) -> Values:
        """Sum gradients and values over the ranks; the norm of the table's gradients with them."""
        ranks = self.parts.ranks
        if not self._known:
            # A parameter that nothing depends on has no gradient on any rank, and is left alone.
            met = ranks.agree(*(one.grad is not None for one in self.common))
            both = zip(self.common, met, strict=True)
            self.common, self._known = [one for one, known in both if known], True
        # In one pass, unlike the sum of squares.
        square = torch.linalg.vector_norm(self._of_table(), dtype=torch.float32).square()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.common]
        parts = [each.reshape(-1).float() for each in (*grads, *values.values(), square)]
        whole = ranks.sum_(torch.cat(parts))
        summed = whole.split([len(each) for each in parts])
        for one, grad in zip(self.common, summed, strict=False):
            one.grad = grad.view_as(one).to(one.dtype)
        *told, square = (each[0] for each in summed[len(grads) :])
        # All gradients are one tensor, of which the norm is taken at once.
        norm = torch.linalg.vector_norm(whole[: -1 - len(values)])
        self._norm = square.addcmul(norm, norm).sqrt()
        return dict(zip(values, told, strict=True))

    def _of_table(self) -> Tensor:
        """Gradient of the own rows of the item table."""
        table = self.parts.table
        found = self.held if table is None else table.vectors
        assert found is not None and found.grad is not None
        return found.grad

    def _clip(self) -> Tensor:
        if self.clip_norm > 0:
            table = self.parts.table
            held = self.held if table is None else cast(Tensor, table.vectors)
            clip_grads_with_norm_([*self.common, held], self.clip_norm, self._norm)
        return self._norm
