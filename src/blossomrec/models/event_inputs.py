"""What a model sees of events and requests besides item ids: times, kinds, context, and users.

All of it is added up, to the input of an event or to what is asked. Embeddings start at zero, so
that a model begins as the one that sees ids alone.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blossomrec.data.fields import ContextField
from blossomrec.models import fused

# A gap that is not known, no gap at all, then two buckets each time that it doubles: 68 years.
GAP_BUCKETS = 64
HOUR = 3_600
HOURS, WEEKDAYS = 24, 7
# 1970 began on a Thursday; Monday is day 0.
FIRST_WEEKDAY = 3
# A category of the context with more names than this is looked up by itself.
FEW = 256
# Events that are looked up one by one on a CPU.
SINGLY = 4
# Columns of a product are a multiple of this: for others a GPU has no fast kernel.
ALIGNMENT = 8
# The smallest gap, in whole seconds, of each bucket from 1 on.
_BUCKET_STARTS = [math.ceil(2 ** (number / 2) - 1) for number in range(GAP_BUCKETS - 1)]


@functools.lru_cache(maxsize=8)
def bucket_starts(device: torch.device) -> Tensor:
    """The smallest gap, in whole seconds, of each bucket from 1 on, int64."""
    return torch.tensor(_BUCKET_STARTS, device=device)


def gap_buckets(seconds: Tensor) -> Tensor:
    """Logarithmic buckets of gaps in seconds, int64: 0 for an unknown one, which is negative.

    >>> gap_buckets(torch.tensor([-1, 0, 1, 3, 3_600])).tolist()
    [0, 1, 3, 5, 24]
    """
    return torch.bucketize(seconds, bucket_starts(seconds.device), right=True)


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
    return passed(previous.scatter(0, starts, marked), seconds)


def is_few(events: Tensor) -> bool:
    """Whether so few are encoded on a CPU that each operation on tensors takes longer than it does
    in plain numbers."""
    few = len(events) <= SINGLY and events.device.type == "cpu"
    return few and not torch.is_grad_enabled()


def passed(before: Tensor, after: Tensor) -> Tensor:
    """Seconds between two times, at least 0; -1 where one of them is not known: int64 [n]."""
    if is_few(after):
        both = zip(before.tolist(), after.tolist(), strict=True)
        return torch.tensor([max(b - a, 0) if a >= 0 <= b else -1 for a, b in both])
    known = (before >= 0) & (after >= 0)
    return torch.where(known, (after - before).clamp(min=0), -1)


class Asked(NamedTuple):
    """For what is recommended, of B histories; None what a model is not told.

    Attributes:
        gap: seconds from the last event to the moment, int64 [B], negative where it is not known.
        second: the moment, int64 [B], seconds since 1970.
        kind: number of the kind of event that is wanted, int64 [B], 0 for any.
    """

    gap: Tensor | None = None
    second: Tensor | None = None
    kind: Tensor | None = None


class Seen(NamedTuple):
    """What a model is given of n events, or requests, besides items; None what it does not see.

    Attributes:
        gap, seconds, kinds: int64 [n].
        context: float32 [n, C].
        users: [n, U].
    """

    gap: Tensor | None = None
    seconds: Tensor | None = None
    kinds: Tensor | None = None
    context: Tensor | None = None
    users: Tensor | None = None

    @property
    def any(self) -> Tensor:
        """One of those that are given."""
        return next(each for each in self if each is not None)


class EventInputs(nn.Module):
    """What a model sees of events, or requests, besides items: [n, ...] to [n, D].

    Gap of time, hour of the day and weekday (UTC), kind, context, and what is known of the user.
    They are looked up as a product with rows of zeros, ones and numbers: few embeddings are met by
    very many events, and their gradients are then sums that a matrix product makes. Categories of
    very many names are embeddings of their own.

    Args:
        size: D.
        gap: whether gaps of time have embeddings.
        clock: whether hours and weekdays have.
        kinds: how many kinds are known; None where they have no embeddings.
        context: columns of the context.
        users: columns of what is known of users, see
            :class:`blossomrec.models.features.UserContent`.
        may_fuse: whether a kernel may run where a GPU takes it.
    """

    offsets: Tensor
    scales: Tensor
    few_columns: Tensor
    number_columns: Tensor

    def __init__(
        self,
        size: int,
        *,
        gap: bool = False,
        clock: bool = False,
        kinds: int | None = None,
        context: Sequence[ContextField] = (),
        users: int = 0,
        may_fuse: bool = True,
    ):
        super().__init__()
        self.may_fuse = may_fuse
        self.gap, self.clock, self.kinds, self.users = gap, clock, kinds, users
        columns = list(enumerate(context))
        numbers = [(n, one) for n, one in columns if one.kind == "number"]
        few = [(n, one) for n, one in columns if one.kind == "category" and one.size <= FEW]
        many = [(n, one) for n, one in columns if one.size > FEW]
        sizes = [GAP_BUCKETS if gap else 0, HOURS + WEEKDAYS if clock else 0]
        sizes += [0 if kinds is None else kinds + 1, *(one.size for _, one in few)]
        # Where each part begins among the rows, and where the numbers do.
        self.starts = list(accumulate(sizes, initial=0))
        self.embeddings = _from_zero(self.starts[-1] + len(numbers) + users, size)
        self.many = [n for n, _ in many]
        self.of_many = nn.ModuleList(_from_zero(one.size, size) for _, one in many)
        # On the device: a list as an index would be copied there each time, which waits.
        whole = {
            "offsets": self.starts[3:-1],
            "few_columns": [n for n, _ in few],
            "number_columns": [n for n, _ in numbers],
        }
        # The same for a few events in plain numbers.
        self._few = [(start, n) for start, (n, _) in zip(self.starts[3:-1], few, strict=True)]
        self._numbers = [(n, one.mean, one.deviation) for n, one in numbers]
        for name, values in whole.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.long), persistent=False)
        scales = torch.tensor([[one.mean, one.deviation] for _, one in numbers])
        self.register_buffer("scales", scales, persistent=False)

    def rescale(self, context: Sequence[ContextField]) -> None:
        """Take the mean and deviation of numbers from these columns, which are else the same."""
        numbers = [one for one in context if one.kind == "number"]
        self._numbers = [
            (column, one.mean, one.deviation)
            for (column, *_), one in zip(self._numbers, numbers, strict=True)
        ]
        if numbers:
            self.scales.copy_(torch.tensor([[one.mean, one.deviation] for one in numbers]))

    def forward(
        self,
        gap: Tensor | None,
        seconds: Tensor | None,
        kinds: Tensor | None = None,
        context: Tensor | None = None,
        users: Tensor | None = None,
    ) -> Tensor:
        """[n, D]; gaps, times and kinds are int64 [n], the context float32 [n, C], users [n, U].

        None is given for what it does not see.
        """
        seen = Seen(gap, seconds, kinds, context, users)
        if is_few(seen.any):
            return self._singly(seen)
        weight = self.embeddings.weight
        weight = F.pad(weight, (0, 0, 0, -len(weight) % ALIGNMENT))
        return self._with_many(self._columns(seen, len(weight)) @ weight, context)

    def _columns(self, seen: Seen, width: int) -> Tensor:
        """Zeros, ones and numbers that the embeddings are multiplied by, [n, width]."""
        weight = self.embeddings.weight
        dtype = weight.dtype
        if torch.is_autocast_enabled(weight.device.type):
            dtype = torch.get_autocast_dtype(weight.device.type)
        if self.may_fuse and fused.usable(weight):
            from blossomrec.models.fused.event_columns import WIDEST, event_columns

            if width <= WIDEST:
                return event_columns(self, seen, bucket_starts(weight.device), width, dtype)
        gap, seconds, kinds, context, users = seen
        rows = list[Tensor]()
        if self.gap:
            assert gap is not None
            rows.append(gap_buckets(gap)[:, None])
        if self.clock:
            assert seconds is not None
            hours = seconds.div(HOUR, rounding_mode="floor") + FIRST_WEEKDAY * HOURS
            days = hours.div(HOURS, rounding_mode="floor") % WEEKDAYS
            clock = torch.stack((hours % HOURS, HOURS + days), 1)
            rows.append(clock + self.starts[1])
        if self.kinds is not None:
            assert kinds is not None
            rows.append(kinds[:, None] + self.starts[2])
        if len(self.few_columns):
            assert context is not None
            numbers = context.index_select(1, self.few_columns).nan_to_num(0.0).long()
            rows.append(numbers + self.offsets)
        chosen = torch.zeros(len(seen.any), width, dtype=dtype, device=weight.device)
        if rows:
            chosen.scatter_(1, torch.cat(rows, 1), 1.0)
        end = self.starts[-1] + len(self.number_columns)
        if len(self.number_columns):
            assert context is not None
            mean, deviation = self.scales.unbind(1)
            values = context.index_select(1, self.number_columns)
            chosen[:, self.starts[-1] : end] = ((values - mean) / deviation).nan_to_num(0.0)
        if self.users:
            assert users is not None
            chosen[:, end : end + self.users] = users
        return chosen

    def _with_many(self, x: Tensor, context: Tensor | None) -> Tensor:
        for column, table in zip(self.many, self.of_many, strict=True):
            assert context is not None
            x = x + table(context[:, column].nan_to_num(0.0).long())
        return x

    def _singly(self, seen: Seen) -> Tensor:
        """As :meth:`forward`, of a few events on a CPU, of which each operation takes a while."""
        weight = self.embeddings.weight.detach().numpy()
        *others, users = seen
        gaps, moments, wanted, contexts = (
            None if each is None else each.tolist() for each in others
        )
        found = np.zeros((len(seen.any), weight.shape[1]), weight.dtype)
        for n, x in enumerate(found):
            rows = list[int]()
            if self.gap and gaps is not None:
                rows.append(bisect_right(_BUCKET_STARTS, gaps[n]))
            if self.clock and moments is not None:
                days, hour = divmod(moments[n] // HOUR + FIRST_WEEKDAY * HOURS, HOURS)
                rows += [self.starts[1] + hour, self.starts[1] + HOURS + days % WEEKDAYS]
            if self.kinds is not None and wanted is not None:
                rows.append(self.starts[2] + wanted[n])
            values = () if contexts is None else contexts[n]
            for start, column in self._few:
                rows.append(start + _whole(values[column]))
            if rows:
                x += weight[rows].sum(0)
            for row, (column, mean, deviation) in enumerate(self._numbers, self.starts[-1]):
                if not math.isnan(values[column]):
                    x += weight[row] * ((values[column] - mean) / deviation)
            for column, table in zip(self.many, self.of_many, strict=True):
                x += cast(nn.Embedding, table).weight.detach().numpy()[_whole(values[column])]
        if users is not None and self.users:
            found += users.numpy() @ weight[-self.users :]
        return torch.from_numpy(found)


def _whole(value: float) -> int:
    """Number of a category of the context, 0 where it is missing."""
    return 0 if math.isnan(value) else int(value)


def _from_zero(rows: int, size: int) -> nn.Embedding:
    table = nn.Embedding(rows, size)
    nn.init.zeros_(table.weight)
    return table
