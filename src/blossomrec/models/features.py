"""What a model sees besides item ids: times, kinds and context of events, content of items.

Everything here is added up: to the input of an event, to what is asked, or to an item's vector.
Tables that say something of an event or a request start at zero, so that a model begins as the one
that sees ids alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blossomrec.data.features import Categories, Feature, Numbers, Vectors

# A gap that is not known, no gap at all, then two buckets each time that it doubles: 68 years.
GAP_BUCKETS = 64
HOUR, DAY = 3_600, 86_400
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
        seconds: int64 [T], packed.
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
    known = previous >= 0
    return torch.where(known, (seconds - previous).clamp(min=0), -1)


class Moments(nn.Module):
    """Embeddings of a gap of time and, as an option, of the hour of the day and the weekday (UTC).

    Args:
        size: D.
        clock: whether hours and weekdays have embeddings.
    """

    def __init__(self, size: int, *, clock: bool):
        super().__init__()
        self.gap = _zeros(GAP_BUCKETS, size)
        self.hour = _zeros(24, size) if clock else None
        self.weekday = _zeros(7, size) if clock else None

    def forward(self, gap: Tensor, seconds: Tensor) -> Tensor:
        """Gaps and times in seconds, int64 [T] each, to [T, D]."""
        found = self.gap(gap_buckets(gap))
        if self.hour is not None and self.weekday is not None:
            found = found + self.hour(seconds.div(HOUR, rounding_mode="floor") % 24)
            days = seconds.div(DAY, rounding_mode="floor")
            found = found + self.weekday((days + FIRST_WEEKDAY) % 7)
        return found


class Content(nn.Module):
    """The sum of what a table of features says of each row: [R, D].

    Embeddings of categories are added up, several of a row too; numbers are brought to mean 0 and
    deviation 1, vectors to mean length 1, and both projected. What is missing adds nothing, but for
    an unknown category, which has an embedding of its own. Titles are for people.

    Args:
        features: by name; their arrays become buffers, saved with the model.
        size: D.
    """

    def __init__(self, features: Mapping[str, Feature], size: int):
        super().__init__()
        self.size = size
        self.categories, self.projections = nn.ModuleDict(), nn.ModuleDict()
        for number, feature in enumerate(features.values()):
            if isinstance(feature, Categories):
                self.categories[str(number)] = nn.EmbeddingBag(
                    feature.size, size, mode="sum", include_last_offset=True
                )
                self._keep(f"values_{number}", feature.values.astype(np.int64))
                self._keep(f"offsets_{number}", feature.offsets)
            elif isinstance(feature, (Numbers, Vectors)):
                numbers = _scaled(feature)
                self.projections[str(number)] = nn.Linear(numbers.shape[1], size, bias=False)
                self._keep(f"numbers_{number}", numbers)
        for bag in self.categories.values():
            nn.init.normal_(bag.weight, std=0.02 / math.sqrt(max(1, len(self.categories))))
        for projection in self.projections.values():
            nn.init.normal_(projection.weight, std=0.02)

    def _keep(self, name: str, array: np.ndarray) -> None:
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array)))

    def forward(self) -> Tensor:
        """Vectors of all rows, [R, D]; 0 without a feature that says something."""
        parts = [
            bag(getattr(self, f"values_{number}"), getattr(self, f"offsets_{number}"))
            for number, bag in self.categories.items()
        ]
        parts += [
            F.linear(getattr(self, f"numbers_{number}"), projection.weight)
            for number, projection in self.projections.items()
        ]
        return torch.stack(parts).sum(0)

    @property
    def is_empty(self) -> bool:
        """Whether the table says nothing that a model can see."""
        return not len(self.categories) and not len(self.projections)


def _zeros(count: int, size: int) -> nn.Embedding:
    table = nn.Embedding(count, size)
    nn.init.zeros_(table.weight)
    return table


def _scaled(feature: Numbers | Vectors) -> np.ndarray:
    """Numbers [R, 1] or vectors [R, d] of a common size, float32; 0 where they are missing."""
    values = np.asarray(feature.values, np.float64)
    if isinstance(feature, Numbers):
        known = ~np.isnan(values)
        there = values[known] if known.any() else np.zeros(1)
        deviation = there.std() or 1.0
        return np.where(known, (values - there.mean()) / deviation, 0.0)[:, None].astype(np.float32)
    known = ~np.isnan(values).any(1)
    length = np.linalg.norm(values[known], axis=1).mean() if known.any() else 1.0
    scaled = np.nan_to_num(values, nan=0.0) / (length or 1.0)
    return np.where(known[:, None], scaled, 0.0).astype(np.float32)
