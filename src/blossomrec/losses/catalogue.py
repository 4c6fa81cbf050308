"""The loss over the whole catalogue, in one place or in parts."""

from __future__ import annotations

from blossomrec.losses import TrainingLoss
from blossomrec.losses.sharded import sharded_cross_entropy
from blossomrec.losses.softmax import cross_entropy, row_cross_entropy


class CrossEntropy(TrainingLoss):
    """:func:`cross_entropy`."""

    captured = True
    weighted = True
    by_row = True
    sharded = True

    def __call__(self, hidden, weight, targets, row_weights=None):
        return cross_entropy(hidden, weight, targets, row_weights, may_fuse=self.may_fuse)

    def rows(self, hidden, weight, targets):
        return row_cross_entropy(hidden, weight, targets, may_fuse=self.may_fuse)

    def sharded_rows(self, hidden, weight, targets, ranks, **where):
        return sharded_cross_entropy(
            hidden, weight, targets, ranks, may_fuse=self.may_fuse, **where
        )
