"""A moving average of the weights, which ranks better than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from blossomrec.training.sparse.table import RowTable


class WeightAverage:
    """The exponential moving average of a model's trainable weights.

    Step t, counted from 1, counts ``min(decay, (1 + t) / (10 + t))`` of what was before, so that
    the weights of the start are soon forgotten. Takes as much memory as the weights.

    Args:
        model: on the device it is trained on.
        decay: a step; 0 for no average, so that nothing is kept.
        table: what keeps the average of one of the weights itself, row by row as they are needed;
            :meth:`in_place` is for a table that has caught up.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(model, 0.5)
        >>> model.weight.data += 1.0  # a step of the optimizer
        >>> average.update(100)
        >>> with average.in_place():
        ...     metrics = validate(model)  # of weights half a step behind
    """

    def __init__(self, model: nn.Module, decay: float, table: RowTable | None = None):
        self.decay = decay
        named = model.named_parameters() if decay else ()
        trained = {name: one for name, one in named if one.requires_grad}
        self.names, self.weights = list(trained), [one.detach() for one in trained.values()]
        of_rows = [table is not None and one is table.weight for one in trained.values()]
        self.means = [
            table.start_average(decay) if table is not None and rows else one.clone()
            for one, rows in zip(self.weights, of_rows, strict=True)
        ]
        both = zip(self.means, self.weights, of_rows, strict=True)
        self._updated = [(mean, one) for mean, one, rows in both if not rows]

    def update(self, step: int) -> None:
        """Take in the weights as they are after ``step``, counted from 1."""
        if self._updated:
            decay = min(self.decay, (1 + step) / (10 + step))
            means, weights = map(list, zip(*self._updated, strict=True))
            get_ema_multi_avg_fn(decay)(means, weights, step)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model has the average as its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        # Copied, not exchanged: a captured step knows the weights by where they are.
        with torch.no_grad():
            for weight, mean in zip(self.weights, self.means, strict=True):
                kept = weight.clone()
                weight.copy_(mean)
                mean.copy_(kept)

    def state_dict(self) -> dict[str, Tensor]:
        """The average of each weight, by the weight's name."""
        return dict(zip(self.names, self.means, strict=True))

    def load_state_dict(self, means: dict[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` gave."""
        for name, mean in zip(self.names, self.means, strict=True):
            mean.copy_(means[name])
