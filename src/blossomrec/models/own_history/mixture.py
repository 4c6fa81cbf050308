"""The user's own items as candidates: a distribution over the history, mixed into the catalogue's.

The probability of the next item is a mixture, weighed by the state of the user, of the softmax
over the catalogue and of distributions over the items of the history: by how often they occurred,
older occurrences counting less, at several learned rates, in events and in real time; by what
followed the last item where it was there before; and by how long ago each was last seen, which is
a softmax over the distinct items of the history whose logits know the state, the item, how often
it was there and how long it stayed away before.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blossomrec.data.batch import Batch
from blossomrec.models.fused.embedding import embedding
from blossomrec.models.own_history.items import OwnItems
from blossomrec.models.own_history.occurrences import (
    LARGEST_LOG,
    LastOccurrences,
    Occurrences,
    decayed_counts,
    moments,
    sums_by_gap,
)

# Weight of all that is not the catalogue's, at the beginning.
OWN_SHARE = 0.1
# What an event counts one event later, at the beginning, and half-lives in days.
DECAYS = (0.5, 0.9, 0.98, 0.995)
HALF_LIVES = (1.0, 7.0, 30.0, 365.0)
# The same for what followed the last item.
STEP_DECAYS = (0.9, 0.995)
DAY = 86_400
# Gaps in seconds below a day; from there on two buckets each time that it doubles, for four years.
SHORT_GAPS = (0, 1, 60, 600, 3_600, 14_400, 43_200)
LONG_BUCKETS = 22


class Scale(nn.Module):
    """Events, or real time, as what distances between events of a history are measured in.

    Args:
        size: D.
        counts: how many logarithms of counts an occurrence has.
        rates: of decay, by events or seconds.
        starts: smallest gap of each bucket, rising from the smallest that there is.
        may_fuse: whether kernels of a GPU may be used.
    """

    starts: Tensor

    def __init__(
        self, size: int, counts: int, rates: list[float], starts: list[int], *, may_fuse: bool
    ):
        super().__init__()
        self.may_fuse = may_fuse
        self.log_rates = nn.Parameter(torch.tensor(rates).log())
        self.register_buffer("starts", torch.tensor(starts), persistent=False)
        self.buckets = len(starts)
        # Of the weight that an occurrence has in each bucket: by its item, by how often it was
        # there, and by the gap before it, of which there is none at first.
        self.of_item = nn.Linear(size, self.buckets, bias=False)
        self.of_counts = nn.Linear(counts, self.buckets, bias=False)
        self.of_gap = nn.Embedding(self.buckets + 1, self.buckets)
        for each in (self.of_item, self.of_counts, self.of_gap):
            nn.init.zeros_(each.weight)

    @property
    def rates(self) -> Tensor:
        return self.log_rates.exp()

    def weights(self, vectors: Tensor, counts: Tensor, gap: Tensor) -> Tensor:
        """Logarithms of what occurrences weigh in each bucket, [N, B].

        Args:
            vectors: of the items, [N, D].
            counts: logarithms of the counts on all scales, [N, R].
            gap: bucket of the gap before, int64 [N].
        """
        of_gap = embedding(gap, self.of_gap.weight, may_fuse=self.may_fuse)
        weights = self.of_item(vectors) + self.of_counts(counts) + of_gap
        return weights.clamp(-LARGEST_LOG, LARGEST_LOG)

    def gap_bucket(self, gaps: Tensor, before: Tensor) -> Tensor:
        """Buckets of the gaps before occurrences, int64 [N]; one more where ``before`` is -1."""
        return torch.where(before < 0, self.buckets, self.bucket(gaps))

    def bucket(self, gaps: Tensor) -> Tensor:
        """Buckets of gaps, int64 [N]."""
        return (torch.searchsorted(self.starts, gaps, right=True) - 1).clamp(min=0)


class _Seen(NamedTuple):
    """Events on one scale.

    Attributes:
        place, moment: where events are, and from where they are looked back at, int64 [T].
        counts: of the item up to each event, [T, R].
        totals: the same of all items, [T, R].
        weights: logarithms for each bucket, [T, B].
    """

    place: Tensor
    moment: Tensor
    counts: Tensor
    totals: Tensor
    weights: Tensor


class OwnHistory(nn.Module):
    """The mixture; see the module. It begins with a share of 0.1 for the user's own items.

    Args:
        size: D, of states and of vectors of items.
        max_len: longest history.
        timed: whether the model sees times.
        may_fuse: whether kernels of a GPU may be used.
    """

    def __init__(self, size: int, max_len: int, *, timed: bool, may_fuse: bool = True):
        super().__init__()
        rates = [[-math.log(each) for each in DECAYS]]
        starts = [_doubling(1, max(2 * math.ceil(math.log2(max_len)), 2))]
        if timed:
            rates.append([math.log(2) / (each * DAY) for each in HALF_LIVES])
            starts.append([*SHORT_GAPS, *_doubling(DAY, LONG_BUCKETS)])
        counts = sum(map(len, rates))
        own = counts + len(STEP_DECAYS) + len(rates)
        self.timed, self.may_fuse = timed, may_fuse
        self.log_step_rates = nn.Parameter(torch.tensor([-math.log(x) for x in STEP_DECAYS]).log())
        self.scales = nn.ModuleList(
            Scale(size, counts, *each, may_fuse=may_fuse)
            for each in zip(rates, starts, strict=True)
        )
        self.mix = nn.Linear(size, 1 + own)
        self.of_state = nn.Linear(size, sum(map(len, starts)))
        for each in (self.mix, self.of_state):
            nn.init.zeros_(each.weight)
            nn.init.zeros_(each.bias)
        with torch.no_grad():
            self.mix.bias[1:] = math.log(OWN_SHARE / (1 - OWN_SHARE) / own)

    def losses(
        self,
        losses: Tensor,
        hidden: Tensor,
        batch: Batch,
        rows: Tensor | None,
        catalogue: Tensor,
        ahead: Tensor | None,
    ) -> Tensor:
        """Negative logarithms of the mixture at the targets, [M], from those of the catalogue.

        Args:
            losses: of the softmax over the catalogue, [M].
            hidden: states, [M, D].
            batch: T events, with targets.
            rows: of the events that are predicted from, int64 [M]; None for all.
            catalogue: vectors of the items, [I, D].
            ahead: time from each event to the moment for which is recommended, int64 [T]; None
                where it is not told.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            hidden, catalogue = _exact(hidden), _exact(catalogue)
            assert batch.targets is not None
            found = Occurrences.of(batch.items, batch.cu_seqlens, batch.targets)
            seen = self._seen(batch, found, catalogue, ahead)
            at = torch.arange(len(batch.items), device=hidden.device) if rows is None else rows
            last = _taken(found.seen, rows)
            known, last = last >= 0, last.clamp(min=0)
            parts = self._shares(seen, at, last)
            steps, led = self._steps(found, batch.max_length)
            parts.append(_taken(steps, rows))
            for scale, one, of_state in zip(
                self._scales(), seen, self._of_state(hidden), strict=True
            ):
                sums = sums_by_gap(one.weights.exp(), one.place, one.moment, scale.starts, found)
                sums = _taken(sums, rows)
                there = sums > 0
                logs = torch.where(there, sums, 1.0).log().masked_fill(~there, -torch.inf)
                bucket = scale.bucket(one.moment[at] - one.place[last])[:, None]
                logit = of_state.gather(1, bucket) + one.weights.index_select(0, last).gather(
                    1, bucket
                )
                parts.append(logit - (of_state + logs).logsumexp(1, keepdim=True))
            own = torch.cat(parts, 1).masked_fill(~known[:, None], -torch.inf)
            mix = self._mix(hidden, _taken(led, rows))
            mixed = torch.cat((-_exact(losses)[:, None], own), 1) + mix
            return -mixed.logsumexp(1)

    @torch.no_grad()
    def items(self, batch: Batch, catalogue: Tensor, ahead: Tensor | None) -> OwnItems:
        """The own items of every history of a batch, none of which is empty.

        What :meth:`losses` makes for every event is made here for the last ones alone, in one pass.
        """
        with torch.autocast(batch.items.device.type, enabled=False):
            last = LastOccurrences.of(batch.items, batch.cu_seqlens)
            end = batch.last_rows[last.history]
            shares, counted, gaps, buckets = list[Tensor](), list[Tensor](), [], []
            for scale, (place, moment) in zip(
                self._scales(), self._places(batch, ahead), strict=True
            ):
                at, rates = place[last.rows], scale.rates
                distance = (at[last.of_event] - place).to(rates.dtype)[:, None]
                counts = _summed((-distance * rates).exp(), last.of_event, len(at))
                gone = (place[end] - at).to(rates.dtype)[:, None] * -rates
                total = _summed(counts * gone.exp(), last.history, batch.num_histories)
                shares.append(counts.log() + gone - total.log()[last.history])
                counted.append(counts.log())
                gaps.append(scale.gap_bucket(at - place[last.before.clamp(min=0)], last.before))
                buckets.append(scale.bucket(moment[end] - at)[:, None])
            steps, led = self._last_steps(batch, last)
            shares.append(steps)
            items, logs = batch.items[last.rows], torch.cat(counted, 1)
            vectors = _exact(F.embedding(items, catalogue))
            weights = [
                scale.weights(vectors, logs, gap).gather(1, bucket)
                for scale, gap, bucket in zip(self._scales(), gaps, buckets, strict=True)
            ]
            columns = (torch.cat(each, 1) for each in (shares, buckets, weights))
            return OwnItems(batch.num_histories, last.history, led, items, *columns)

    @torch.no_grad()
    def scores(self, states: Tensor, lse: Tensor, own: OwnItems, scores: Tensor) -> Tensor:
        """Scores of own items, [N], such that a softmax over all items is the mixture.

        Args:
            states: [B, D].
            lse: logarithm of the summed exponentials of all scores of the catalogue, [B].
            own: of the histories.
            scores: of the own items in the catalogue, [N].
        """
        mix = self._mix(_exact(states), own.led)
        shares = (self._own_logs(states, own) + mix[own.history, 1:]).logsumexp(1)
        return torch.logaddexp(scores, shares + (lse - mix[:, 0])[own.history])

    def _own_logs(self, states: Tensor, own: OwnItems) -> Tensor:
        """Logarithms of the probabilities of own items by each distribution over them."""
        parts, history = [own.shares], own.history
        columns = zip(own.buckets.unbind(1), own.weights.unbind(1), strict=True)
        for of_state, (bucket, weight) in zip(self._of_state(_exact(states)), columns, strict=True):
            logit = of_state[history, bucket] + weight
            top = logit.new_full((own.num_histories,), -torch.inf)
            top.scatter_reduce_(0, history, logit, "amax")
            total = torch.zeros_like(top, dtype=torch.float64)
            total.index_add_(0, history, (logit - top[history]).exp().double())
            parts.append((logit - (top + total.log().to(top.dtype))[history])[:, None])
        return torch.cat(parts, 1)

    def _seen(
        self, batch: Batch, found: Occurrences, catalogue: Tensor, ahead: Tensor | None
    ) -> list[_Seen]:
        """The events on each scale."""
        rows = torch.arange(len(batch.items), device=batch.items.device)
        before = torch.where(rows > found.start, rows - 1, -1)
        chains = torch.cat((found.previous, torch.where(before < 0, -1, before + len(rows))))
        vectors = embedding(batch.items, catalogue, may_fuse=self.may_fuse)
        places = self._places(batch, ahead)
        counted = []
        for scale, (place, _) in zip(self._scales(), places, strict=True):
            both = decayed_counts(scale.rates, torch.cat((place, place)), chains, batch.max_length)
            counted.append(both.split(len(rows)))
        logs = torch.cat([counts.log() for counts, _ in counted], 1)
        seen = []
        for scale, of, (counts, totals) in zip(self._scales(), places, counted, strict=True):
            place, moment = of
            again = place - place[found.previous.clamp(min=0)]
            weights = scale.weights(vectors, logs, scale.gap_bucket(again, found.previous))
            seen.append(_Seen(place, moment, counts, totals, weights))
        return seen

    def _places(self, batch: Batch, ahead: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Where events are, and from where they are looked back at, int64 [T], on each scale."""
        rows = torch.arange(len(batch.items), device=batch.items.device)
        places = [(rows, rows + 1)]
        if self.timed:
            assert batch.times is not None
            places.append(moments(batch.times, batch.cu_seqlens, ahead))
        return places

    def _shares(self, seen: list[_Seen], at: Tensor, last: Tensor) -> list[Tensor]:
        """Logarithms of the shares that items have of all counts, [N, R] of each scale.

        at, last: the events, and the latest ones of the items, int64 [N].
        """
        parts = []
        for scale, one in zip(self._scales(), seen, strict=True):
            gone = (one.place[at] - one.place[last]).to(scale.log_rates.dtype)[:, None]
            parts.append(_logs(one.counts, last) - gone * scale.rates - _logs(one.totals, at))
        return parts

    def _steps(self, found: Occurrences, longest: int) -> tuple[Tensor, Tensor]:
        """Logarithms of the shares that items asked for have of all that followed an event's item
        before, [T, F], and where something did, bool [T]."""
        rates, rows = (
            self.log_step_rates.exp(),
            torch.arange(len(found.start), device=found.start.device),
        )
        source = torch.where(found.source < 0, -1, found.source + len(rows))
        counts = decayed_counts(
            rates, torch.cat((rows, rows)), torch.cat((found.step, source)), longest
        )
        led, there = found.previous >= 0, found.step_seen >= 0
        latest = torch.where(led, found.previous + 1, 0)
        last = found.step_seen.clamp(min=0)
        gone = (latest - last).to(rates.dtype)[:, None] * rates
        shares = _logs(counts, last) - _logs(counts, latest + len(rows)) - gone
        return shares.masked_fill(~there[:, None], -torch.inf), led

    def _last_steps(self, batch: Batch, last: LastOccurrences) -> tuple[Tensor, Tensor]:
        """As :meth:`_steps`, of the last event of each history, for its items: [N, F], bool [B]."""
        rates, rows = (
            self.log_step_rates.exp(),
            torch.arange(len(batch.items), device=last.rows.device),
        )
        history, of = last.history[last.of_event], last.of_event
        end = batch.last_rows[history]
        came = torch.cat((of[:1], of[:-1])) == of[end]
        came &= rows > batch.cu_seqlens.long()[history]
        weights = (-(end - rows).to(rates.dtype)[:, None] * rates).exp() * came[:, None]
        counts = _summed(weights, of, len(last.rows))
        total = _summed(weights, history, batch.num_histories)
        led = total.new_zeros(batch.num_histories).index_add_(0, history, came.to(total.dtype)) > 0
        there = (counts > 0) & led[last.history][:, None]
        shares = (
            torch.where(there, counts, 1.0).log()
            - torch.where(led[:, None], total, 1.0).log()[last.history]
        )
        return shares.masked_fill(~there, -torch.inf), led

    def _mix(self, states: Tensor, led: Tensor) -> Tensor:
        """Logarithms of the weights of the parts, the catalogue's first, [M, 1 + R + F + S].

        led: whether something followed the last item before, bool [M]; else that has no weight.
        """
        parts = self.mix(states)
        steps, scales = len(self.log_step_rates), len(self.scales)
        out = torch.zeros(parts.shape[1], dtype=torch.bool, device=parts.device)
        out[-scales - steps : -scales] = True
        return parts.masked_fill(out & ~led[:, None], -torch.inf).log_softmax(1)

    def _of_state(self, states: Tensor) -> tuple[Tensor, ...]:
        """What the state says of each bucket, [M, B] of each scale."""
        return self.of_state(states).split([scale.buckets for scale in self._scales()], 1)

    def _scales(self) -> list[Scale]:
        return [cast(Scale, scale) for scale in self.scales]


def _doubling(start: int, count: int) -> list[int]:
    """Whole numbers from ``start`` on, two each time that they double, each once."""
    return sorted({round(start * 2 ** (number / 2)) for number in range(count)})


def _logs(counts: Tensor, rows: Tensor) -> Tensor:
    # Unlike that of indexing, the gradient of a selection needs no sort. Its sums do not depend on
    # the order: one event asks for a row, and the gradient of any others that do is zero.
    return counts.index_select(0, rows).log()


def _taken(events: Tensor, rows: Tensor | None) -> Tensor:
    return events if rows is None else events.index_select(0, rows)


def _exact(x: Tensor) -> Tensor:
    """In float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _summed(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sums over the rows of each group, [G, R]; in float64, where their order hardly matters."""
    sums = values.new_zeros(groups, values.shape[1], dtype=torch.float64)
    return sums.index_add_(0, group, values.double()).to(values.dtype)
