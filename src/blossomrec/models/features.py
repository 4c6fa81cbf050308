"""What a model sees besides item ids: times, kinds and context of events, content of items.

Everything here is added up: to the input of an event, to what is asked, or to an item's vector.
Tables that say something of an event or a request start at zero, so that a model begins as the one
that sees ids alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from blossomrec.data.features import Categories, Feature, Numbers, Vectors

# A gap that is not known, no gap at all, then two buckets each time that it doubles: 68 years.
GAP_BUCKETS = 64
HOUR, DAY = 3_600, 86_400
HOURS, WEEKDAYS = 24, 7
# 1970 began on a Thursday; Monday is day 0.
FIRST_WEEKDAY = 3


def gap_buckets(seconds: Tensor) -> Tensor:
    """Logarithmic buckets of gaps in seconds, int64: 0 for an unknown one, which is negative.

    >>> gap_buckets(torch.tensor([-1, 0, 1, 3, 3_600])).tolist()
    [0, 1, 3, 5, 24]
    """
    doublings = torch.log2(1.0 + seconds.clamp(min=0).double())
    bucket = 1 + (2 * doublings).floor().long().clamp(max=GAP_BUCKETS - 2)
    return torch.where(seconds < 0, 0, bucket)


def gaps(seconds: Tensor, cu_seqlens: Tensor, before: Tensor | None = None) -> Tensor:
    """Time from the previous event of the same history, int64 [T]; -1 where there is none.

    Args:
        seconds: int64 [T], packed; negative where it is not known.
        cu_seqlens: int32 [B+1].
        before: int64 [B], time of the event before each history's first, negative for none; None
            where there is none of any.
    """
    starts = cu_seqlens[:-1].long().clamp(max=max(len(seconds) - 1, 0))
    # The rows that nothing precedes are marked; empty histories at the end mark the last row with
    # what it has already.
    previous = torch.cat((seconds[:1], seconds[:-1]))
    lengths = cu_seqlens.diff()
    first = seconds.new_full((len(starts),), -1) if before is None else before
    marked = torch.where(lengths > 0, first, previous[starts])
    previous = previous.scatter(0, starts, marked)
    known = (previous >= 0) & (seconds >= 0)
    return torch.where(known, (seconds - previous).clamp(min=0), -1)


class Moments(nn.Module):
    """Embeddings of a gap of time and, as an option, of the hour of the day and the weekday (UTC).

    They are looked up as a product with rows of zeros and ones: few rows are met by very many
    events, and their gradients are then sums that a matrix product makes.

    Args:
        size: D.
        clock: whether hours and weekdays have embeddings.
    """

    def __init__(self, size: int, *, clock: bool):
        super().__init__()
        self.clock = clock
        self.embeddings = nn.Embedding(GAP_BUCKETS + (HOURS + WEEKDAYS if clock else 0), size)
        nn.init.zeros_(self.embeddings.weight)

    def forward(self, gap: Tensor, seconds: Tensor) -> Tensor:
        """Gaps and times in seconds, int64 [T] each, to [T, D]."""
        rows = [gap_buckets(gap)]
        if self.clock:
            hour = seconds.div(HOUR, rounding_mode="floor") % HOURS
            day = seconds.div(DAY, rounding_mode="floor") + FIRST_WEEKDAY
            rows += [GAP_BUCKETS + hour, GAP_BUCKETS + HOURS + day % WEEKDAYS]
        weight = self.embeddings.weight
        chosen = torch.zeros(len(gap), len(weight), dtype=weight.dtype, device=weight.device)
        return chosen.scatter_(1, torch.stack(rows, 1), 1.0) @ weight


class Content(nn.Module):
    """The sum of what a table of features says of each row: [R, D].

    Embeddings of categories are added up, several of a row too; numbers are brought to mean 0 and
    deviation 1, vectors to mean length 1, and both projected. What is missing adds nothing, but for
    an unknown category, which has an embedding of its own. Titles are for people.

    Args:
        features: by name; their arrays become buffers, which are saved with the table.
        size: D.
    """

    def __init__(self, features: Mapping[str, Feature], size: int):
        super().__init__()
        self.categories = nn.ModuleList(
            _Categories(one, size) for one in features.values() if isinstance(one, Categories)
        )
        self.numbers = nn.ModuleList(
            _Projected(one, size)
            for one in features.values()
            if isinstance(one, (Numbers, Vectors))
        )

    def forward(self) -> Tensor:
        """Vectors of all rows, [R, D]."""
        return torch.stack([part() for part in (*self.categories, *self.numbers)]).sum(0)

    @property
    def is_empty(self) -> bool:
        """Whether the table says nothing that a model can see."""
        return not len(self.categories) and not len(self.numbers)


class _Categories(nn.Module):
    """The sum of the embeddings of each row's categories, [R, D]."""

    values: Tensor
    offsets: Tensor

    def __init__(self, feature: Categories, size: int):
        super().__init__()
        self.bag = nn.EmbeddingBag(feature.size, size, mode="sum", include_last_offset=True)
        nn.init.normal_(self.bag.weight, std=0.02)
        _keep(self, values=feature.values.astype(np.int64), offsets=feature.offsets)

    def forward(self) -> Tensor:
        return self.bag(self.values, self.offsets)


class _Projected(nn.Module):
    """Each row's number or vector, scaled and projected, [R, D]."""

    values: Tensor

    def __init__(self, feature: Numbers | Vectors, size: int):
        super().__init__()
        values = _scaled(feature)
        self.project = nn.Linear(values.shape[1], size, bias=False)
        nn.init.normal_(self.project.weight, std=0.02)
        _keep(self, values=values)

    def forward(self) -> Tensor:
        return self.project(self.values)


def _keep(module: nn.Module, **arrays: np.ndarray) -> None:
    """Arrays of a table as buffers; they are saved with the table, not with the weights."""
    for name, array in arrays.items():
        tensor = torch.from_numpy(np.array(array))
        module.register_buffer(name, tensor, persistent=False)


def _scaled(feature: Numbers | Vectors) -> np.ndarray:
    """Numbers [R, 1] or vectors [R, d] of a common size, float32; 0 where they are missing."""
    if isinstance(feature, Numbers):
        values = np.asarray(feature.values, np.float64)
        known = ~np.isnan(values)
        there = values[known] if known.any() else np.zeros(1)
        deviation = there.std() or 1.0
        return np.where(known, (values - there.mean()) / deviation, 0.0)[:, None].astype(np.float32)
    values = np.asarray(feature.values)
    known = np.asarray(np.isfinite(values).all(axis=1))
    length = np.linalg.norm(values[known], axis=1).mean() if known.any() else 1.0
    scaled = np.nan_to_num(values, nan=0.0) / (length or 1.0)
    return np.where(known[:, None], scaled, 0.0).astype(np.float32)
