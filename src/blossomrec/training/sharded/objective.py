"""What is minimised where ranks share the item table: this rank's part of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blossomrec.losses import SampledLoss
from blossomrec.models.fused.embedding import embedding, summed_once
from blossomrec.ranks import Ranks
from blossomrec.training.objective import Losses, Objective
from blossomrec.training.sharded.division import SharedStep


class ShardedObjective(Objective):
    """The model with its loss, on a part of a batch and a part of the item table.

    Vectors of the items that the part meets are fetched from the ranks that have them, and their
    gradients go back there. A loss over the whole catalogue is computed where the items are, a
    sampled one where the events are. The sum of ``total`` over the ranks is the loss of the batch.

    Args:
        ranks: who share the table.
        options: as of :class:`Objective`.
    """

    def __init__(self, *given: Any, ranks: Ranks, **options: Any):
        super().__init__(*given, **options)
        self.ranks = ranks

    def forward(self, step: SharedStep) -> Losses:
        if isinstance(self.loss, SampledLoss):
            return self._of_sample(step, self.loss)
        held = self.model.item_vectors()
        # What is found in this pass does not belong to the step as it was given.
        step = step.of(step.batch)
        step.items = self.model.output_weight(held)
        fetched = self._exchanged(step, self._looked_up(held, step.sent))

        def of_rows(hidden: Tensor, weight: Tensor, targets: Tensor, *weights: Tensor) -> Tensor:
            counted = weights[0] if weights else torch.ones_like(targets, dtype=torch.float32)
            losses = self._rows(step, hidden, weight, targets, alike=not weights)
            return self._mean(step, losses, counted)

        with self.model.on_rows(fetched):
            return self._losses(step, of_rows)

    def _of_sample(self, step: SharedStep, loss: SampledLoss) -> Losses:
        """The losses of the own part, with the same negatives on all ranks."""
        wanted, sent = step.wanted, step.sent
        negatives, log_q = loss.draw(wanted.device)
        # Of those that other ranks have, any row stands here: it gets no gradient.
        local = negatives - self._first
        own = local.clamp(0, max(0, len(self.model.held_items) - 1))
        here = local == own
        if self.table is None:
            # Looked up together, so that there is one gradient of what is held.
            found = self._looked_up(self.model.item_vectors(), torch.cat((sent, own)))
        else:
            found = self.table.look_up(sent, own)
        counts = step.counts or (None, None)
        met = _Met.apply(found, here[:, None], len(wanted), self.ranks, *counts)
        # A negative that the part meets anyway has the place that it has there.
        place = torch.searchsorted(wanted, negatives).clamp(max=len(wanted) - 1)
        behind = torch.arange(len(wanted), len(wanted) + len(negatives), device=wanted.device)
        places = torch.where(wanted.index_select(0, place) == negatives, place, behind)

        def of_sample(hidden: Tensor, weight: Tensor, targets: Tensor, *weights: Tensor) -> Tensor:
            mean = loss.of_sample(hidden, weight, targets, places, log_q, *weights)
            own = loss.counted(targets, places, *weights)
            if own is None:
                return mean * step.target_share
            whole = self.ranks.sum_(own.detach().clone())
            return mean * (own / torch.where(whole > 0, whole, 1.0))

        with self.model.on_rows(summed_once(met)):
            return self._losses(step, of_sample)

    def _looked_up(self, held: Tensor, rows: Tensor) -> Tensor:
        # Unlike indexing, an embedding lookup has a gradient that is summed in a fixed order.
        return embedding(rows, held, may_fuse=self.model.may_fuse)

    def _exchanged(self, step: SharedStep, leaving: Tensor) -> Tensor:
        """Vectors of the wanted rows, [K, D], for those of the rows that are sent."""
        counts = step.counts or (None, None)
        return _Exchanged.apply(leaving, self.ranks, *counts)

    @property
    def _first(self) -> int:
        return self.model.held.start

    def _rows(
        self,
        step: SharedStep,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        *,
        alike: bool = False,
    ) -> Tensor:
        targets, where = step.predicted(step.targets), {"first": self._first, "alike": alike}
        options = where | {"longest": step.longest}
        return self.loss.sharded_rows(hidden, step.items, targets, self.ranks, **options)

    def _mean(self, step: SharedStep, losses: Tensor, weights: Tensor) -> Tensor:
        return (losses * weights).sum() / step.counted

    def _distilled(self, step: SharedStep, loss: Tensor) -> Tensor:
        return loss * step.event_share


class _Exchanged(torch.autograd.Function):
    """Rows that go to other ranks for those that come from them; gradients go the way back."""

    @staticmethod
    def forward(ctx, x, ranks, sent, received):
        ctx.back = ranks, received, sent
        return ranks.exchange(x, sent, received)

    @staticmethod
    def backward(ctx, grad):
        ranks, sent, received = ctx.back
        return ranks.exchange(grad, sent, received), None, None, None


class _Met(torch.autograd.Function):
    """Rows that go to other ranks for K that come from them, and behind these N of which each rank
    has some, as ``here`` [N, 1] says, and a gradient of all."""

    @staticmethod
    def forward(ctx, x, here, count, ranks, sent, received):
        ctx.save_for_backward(here)
        leaving = len(x) - len(here)
        ctx.form = leaving, count, ranks, sent, received
        out = x.new_empty(count + len(here), x.shape[1])
        ranks.exchange(x[:leaving], sent, received, out[:count])
        ranks.sum_(torch.mul(x[leaving:], here, out=out[count:]))
        return out

    @staticmethod
    def backward(ctx, grad):
        (here,), (leaving, count, ranks, sent, received) = ctx.saved_tensors, ctx.form
        found = grad.new_empty(leaving + len(here), grad.shape[1])
        ranks.exchange(grad[:count], received, sent, found[:leaving])
        drawn = found[leaving:].copy_(grad[count:])
        ranks.sum_(drawn).mul_(here)
        return found, None, None, None, None, None
