"""Where the items of packed histories occurred before: counts that decay, sums by time since then.

All of it is linear in the events, but for a sort and a factor of log2(longest history), has the
same operations whatever the lengths are, and never waits for the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blossomrec.attention.packing import histories
from blossomrec.models.event_inputs import passed

# Weights of occurrences are summed as whole numbers of this many bits after the point: exactly, in
# any order, so that what leaves a sum leaves nothing behind.
FRACTION_BITS = 36
LARGEST_LOG = 8.0


class Occurrences(NamedTuple):
    """Of each event of packed histories, as rows, int64 [T].

    Attributes:
        history: number of its history.
        start, end: first row of its history, and the row after the last.
        previous: the event of the same item before it in the history, -1 for none.
        following: the next one of the same item, ``end`` for none.
        seen: the latest event, up to this one, of the item that is asked for here; -1 for none.
        source: the event before it in the history if its item came before that, and so led to
            something: the event that it led to last; -1 for none.
        step: the latest event that was led to as this one was, by the same item; -1 for none.
        step_seen: the latest event, up to this one, at which the item of this one led to the item
            that is asked for here; -1 for none.
    """

    history: Tensor
    start: Tensor
    end: Tensor
    previous: Tensor
    following: Tensor
    seen: Tensor
    source: Tensor
    step: Tensor
    step_seen: Tensor

    @staticmethod
    def of(items: Tensor, cu_seqlens: Tensor, asked: Tensor) -> Occurrences:
        """asked: items, int64 [T], negative for none."""
        total, edges = len(items), cu_seqlens.long()
        history = histories(cu_seqlens, total)
        # Rows after the last history, where there are any, are in none.
        history = history.clamp(max=len(edges) - 2)
        start, end = edges[history], edges[history + 1]
        rows, before = torch.arange(total, device=items.device), history[:, None] << 32
        # The history in the upper half, so that no catalogue is too large.
        keys = torch.stack((items, asked), 1)
        (previous, seen), (item, wanted) = _earlier(torch.where(keys < 0, -1, keys + before))
        place = torch.where(previous < 0, total, previous)
        # One row more takes what has no place.
        following = torch.cat((end, end[:1])).scatter(0, place, rows)[:total]
        # Steps from an item to the next one; items are numbered over all histories.
        led, earlier = _led(item, -1), _led(previous, -1)
        first = rows == start
        steps = torch.stack(
            (
                torch.where(first, -1, led * 2 * total + item),
                torch.where(asked < 0, -1, item * 2 * total + wanted),
            ),
            1,
        )
        (step, step_seen), _ = _earlier(steps)
        source = torch.where(first | (earlier < 0), -1, earlier + 1)
        return Occurrences(history, start, end, previous, following, seen, source, step, step_seen)


def _led(events: Tensor, nothing: int) -> Tensor:
    """What the row before has."""
    return torch.cat((events.new_full((1,), nothing), events[:-1]))


class LastOccurrences(NamedTuple):
    """The N distinct items of packed histories, by history, then item.

    Attributes:
        history: number of the history, int64 [N].
        rows: of the last event of the item in it, int64 [N].
        before: row of the event of the item before that one, int64 [N], -1 for none.
        of_event: which of the N each event belongs to, int64 [T].
    """

    history: Tensor
    rows: Tensor
    before: Tensor
    of_event: Tensor

    @staticmethod
    def of(items: Tensor, cu_seqlens: Tensor) -> LastOccurrences:
        history = histories(cu_seqlens, len(items))
        keys, order = ((history << 32) + items).sort(stable=True)
        ends = torch.cat((keys[1:] != keys[:-1], keys[:1] == keys[:1]))
        number = ends.cumsum(0) - ends.long()
        places = ends.nonzero()[:, 0]
        rows, before = order[places], order[places - 1]
        # The place before is of the same item, or of another one.
        same = (places > 0) & (keys[places - 1] == keys[places])
        of_event = torch.empty_like(order).scatter_(0, order, number)
        return LastOccurrences(history[rows], rows, torch.where(same, before, -1), of_event)


def _earlier(keys: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """For keys, int64 [T, n], the row of the latest event before that has the same, and its number.

    The first column are the events themselves. They are not before what is asked in the same
    column, but before what is asked in those behind it. -1 stands for none, and is a negative key.
    Numbers are below n T, the same for the same keys.
    """
    total, width = keys.shape
    ordered, order = keys.flatten().sort(stable=True)
    place = torch.arange(total * width, device=keys.device)
    # Up to, and then before, each place.
    latest = torch.where(order % width == 0, place, -1).cummax(0).values
    latest = torch.cat((latest.new_full((1,), -1), latest[:-1]))
    held = latest.clamp(min=0)
    there = (latest >= 0) & (ordered[held] == ordered) & (ordered >= 0)
    rows = torch.where(there, order[held] // width, -1)
    numbers = (ordered != torch.cat((ordered[:1], ordered[:-1]))).cumsum(0)
    found = (torch.empty_like(each).scatter_(0, order, each) for each in (rows, numbers))
    one, other = (each.view(total, width).unbind(1) for each in found)
    return one, other


def decayed_counts(rates: Tensor, place: Tensor, before: Tensor, longest: int) -> Tensor:
    """How often there was something, an occurrence counting exp(-rate x distance): [N, R].

    Every entry counts 1, and what its predecessor counts, decayed.

    Args:
        rates: [R], differentiable.
        place: where the entries are, int64 or floating [N], rising along the chains.
        before: predecessor of each entry, int64 [N], -1 for none.
        longest: entries of the longest chain, or more.
    """
    return _DecayedCounts.apply(rates, place, before, longest)


class _DecayedCounts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rates: Tensor, place: Tensor, before: Tensor, longest: int) -> Tensor:
        counts = rates.new_ones(len(place), len(rates))
        # By the rate; taken forward with the counts, since there are few rates and many events.
        slopes = torch.zeros_like(counts)
        there, pointer = before >= 0, before.clamp(min=0)
        for _ in range(max(longest - 1, 0).bit_length()):
            distance = (place - place[pointer]).to(rates.dtype)[:, None]
            decay = torch.exp(-distance * rates).masked_fill(~there[:, None], 0.0)
            earlier, slope = counts[pointer], slopes[pointer]
            slopes = slopes + decay * (slope - distance * earlier)
            counts = counts + decay * earlier
            there, pointer = there & there[pointer], pointer[pointer]
        ctx.save_for_backward(slopes)
        return counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slopes,) = ctx.saved_tensors
        return (grad * slopes).sum(0), None, None, None


def sums_by_gap(
    weights: Tensor, place: Tensor, moment: Tensor, starts: Tensor, found: Occurrences
) -> Tensor:
    """Of each event and bucket, summed weights of the items last seen so long ago: [T, B].

    An item counts once, with the weight of its latest occurrence up to the event in the bucket of
    the gap ``moment[event] - place[occurrence]``.

    Args:
        weights: [T, B], of an occurrence while it is in a bucket, at most exp(8); differentiable.
        place: where the events are, int64 [T]; does not fall.
        moment: from where they are looked back at, int64 [T]; does not fall, and is not before
            ``place``.
        starts: smallest gap of each bucket, int64 [B], rising from the smallest that there is.
        found: of these events.
    """
    # Occurrence s is in bucket b from the first event on that stands far enough behind it, until
    # the next bucket begins or its item is seen again: [B, T].
    reached = torch.searchsorted(moment, place + starts[:, None])
    rows = torch.arange(len(place), device=place.device)
    reached = reached.maximum(rows).minimum(found.end)
    left = torch.cat((reached[1:], found.end[None])).minimum(found.following)
    return _IntervalSums.apply(weights, reached.minimum(left), left)


class _IntervalSums(torch.autograd.Function):
    """Sums over the intervals that events lie in: weights [T, B], intervals [B, T] to [T, B]."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, first: Tensor, end: Tensor) -> Tensor:
        ctx.save_for_backward(first, end)
        whole = (weights.T.double() * 2.0**FRACTION_BITS).long()
        change = whole.new_zeros(len(whole), whole.shape[1] + 1)
        change.scatter_add_(1, first, whole).scatter_add_(1, end, -whole)
        sums = change.cumsum(1)[:, :-1].double() * 2.0**-FRACTION_BITS
        return sums.T.to(weights.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        first, end = ctx.saved_tensors
        sums = torch.nn.functional.pad(grad.T.double(), (1, 0)).cumsum(1)
        return (sums.gather(1, end) - sums.gather(1, first)).T.to(grad.dtype), None, None


def moments(times: Tensor, cu_seqlens: Tensor, ahead: Tensor | None) -> tuple[Tensor, Tensor]:
    """Seconds at which events are, and for which is recommended after them, int64 [T].

    Both only count what has passed since events before: they never fall, and where a time is not
    known, nothing has passed. The moments do not go beyond the next event of the history.

    Args:
        times: int64 [T], packed; negative where one is not known.
        ahead: from each event to the moment, int64 [T], negative where it is not known; None where
            none is.
    """
    rows = torch.arange(len(times), device=times.device)
    edges, history = cu_seqlens.long(), histories(cu_seqlens, len(times))
    first = rows == edges[history]
    step = passed(torch.cat((times[:1], times[:-1])), times).clamp(min=0).masked_fill(first, 0)
    later = torch.zeros_like(times) if ahead is None else ahead.clamp(min=0)
    following = torch.cat((step[1:], step[:1]))
    later = torch.where(rows + 1 == edges[history + 1], later, later.minimum(following))
    # The first event of a history is not before the moment after the last one.
    step = torch.where(first, torch.cat((later[-1:], later[:-1])), step)
    place = step.cumsum(0)
    return place, place + later
