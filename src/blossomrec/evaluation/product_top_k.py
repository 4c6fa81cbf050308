"""The best items where scores are products of vectors, without a table of scores, on a GPU.

One pass over the catalogue gives a bound for each group of items that none of its scores exceeds.
The groups with the largest bounds are scored exactly, and the k best of their items are the k best
of all wherever the k-th reaches above the bounds of all other groups. Where it does not, or where
the k-th and the next are equal, all items of that query are scored exactly, by the same kernel: a
score depends on nothing but its two vectors, and the result on no margin and no luck.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from blossomrec.evaluation import scoring
from blossomrec.evaluation.scoring import Pairs
from blossomrec.models import fused

# Groups looked at besides one for each item wanted: a share of these, and one for each item that
# is left out, which may be the best of it, as long as these are no more.
SPARE, SPARE_SHARE, SPARE_LEFT_OUT = 16, 0.25, 512
# Groups of which the best is looked for first.
COARSE = 32


def vectors_for(scorer: Any, k: int) -> Tensor | None:
    """The vectors of the items of a scorer where its best are found here; None where not.

    They are called for when it is in evaluation mode.
    """
    if k > scoring.LARGEST_K or not hasattr(scorer, "score_vectors"):
        return None
    vectors = scorer.score_vectors()
    if vectors is None or not fused.usable(vectors):
        return None
    from blossomrec.models.fused import catalogue_scores

    return vectors if catalogue_scores.takes(vectors) else None


class ProductTopK:
    """The k items whose vectors have the largest products with a query, equal ones by item row.

    Memory is that of the vectors in 16 bits, twice where own items are mixed in, and a few times
    that of ``score_elements`` bounds.

    Args:
        vectors: [I, D] on a GPU, float32 or in 16 bits; they are not changed meanwhile.
        k: at most I.
        offsets: what is added to the scores, float32 [I]; -inf leaves an item out. None adds
            nothing.
        score_elements: bounds held at a time, or those of one query if that is more.
    """

    def __init__(
        self, vectors: Tensor, k: int, offsets: Tensor | None = None, *, score_elements: int
    ):
        from blossomrec.models.fused import catalogue_scores

        self._kernels, self._k = catalogue_scores, k
        self._catalogue = catalogue_scores.GroupedCatalogue(vectors, offsets)
        self._rows = max(1, score_elements // self._catalogue.num_groups)
        self._block_rows = max(1, score_elements // (2 * len(self._catalogue.offsets)))

    def of(self, queries: Tensor, left_out: Pairs | None = None) -> tuple[Tensor, Tensor]:
        """Item rows int64 [n, k], best first, and their scores float32 [n, k].

        -1 and -inf stand where fewer than k items are left.

        Args:
            queries: float32 [n, D].
            left_out: items that some of the queries must not have.

        Raises:
            TrainingError: a score is not a number.
        """
        nothing = torch.empty(0, dtype=torch.int64, device=queries.device)
        histories, items = left_out or (nothing, nothing)
        found = []
        for start in range(0, len(queries), self._rows):
            stop = min(start + self._rows, len(queries))
            theirs = (histories >= start) & (histories < stop)
            some = histories[theirs] - start, items[theirs]
            found.append(self._part(queries[start:stop], *some))
        rows, scores = zip(*found, strict=True)
        return torch.cat(rows), torch.cat(scores)

    def of_mixed(
        self, scorer: Any, queries: scoring.Queries, left_out: Pairs | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same where a scorer mixes the items of the histories into its scores.

        Their scores differ from products: they are made for themselves, and the best of all others
        are looked for. Where none of them is wanted, as of histories that are left out, the sums
        over the catalogue that they need are not made either.
        """
        states, own, catalogue = queries.states, queries.own, self._catalogue
        if own is None:
            return self.of(states, left_out)
        pairs = own.history, own.items
        wanted = torch.ones_like(own.items, dtype=torch.bool)
        if left_out is not None:
            keys = (rows * catalogue.num_items + items for rows, items in (pairs, left_out))
            wanted = ~torch.isin(*keys)
            if not wanted.any():
                return self.of(states, left_out)
            pairs = torch.cat((left_out[0], pairs[0])), torch.cat((left_out[1], pairs[1]))
        found = catalogue.pair_scores(states, own.history, own.items)
        mixed = scorer.own_scores(states, catalogue.lse(states), own, found)
        mixed = (mixed + catalogue.offsets[own.items]).masked_fill(~wanted, -torch.inf)
        scoring.refuse_nan(mixed)
        rows, scores = self.of(states, pairs)
        counts = own.history.bincount(minlength=len(states))
        first = counts.cumsum(0) - counts
        inside = torch.arange(len(own.items), device=rows.device) - first[own.history]
        longest = int(counts.max())
        own_rows = rows.new_zeros(len(rows), longest)
        own_scores = scores.new_full((len(rows), longest), -torch.inf)
        own_rows[own.history, inside], own_scores[own.history, inside] = own.items, mixed
        rows, scores = scoring.in_order(
            torch.cat((rows.clamp(min=0), own_rows), 1), torch.cat((scores, own_scores), 1)
        )
        return rows[:, : self._k], scores[:, : self._k]

    def _part(self, queries: Tensor, histories: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        k, device = self._k, queries.device
        rows, scores, sure = self._likely(queries, histories, items)
        rest = (~sure).nonzero().squeeze(1)
        for start in range(0, len(rest), self._block_rows):
            some = rest[start : start + self._block_rows]
            block = self._catalogue.all_scores(queries[some])
            number = torch.full((len(queries),), -1, device=device)
            number[some] = torch.arange(len(some), device=device)
            theirs = number[histories] >= 0
            block[number[histories[theirs]], items[theirs]] = -torch.inf
            rows[some], scores[some] = scoring.best(block, k)
        return rows, scores

    def _likely(
        self, queries: Tensor, histories: Tensor, items: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best items of the groups with the largest bounds, and whether they are it, bool [n].

        Args:
            histories, items: what is left out, int64 [N].
        """
        k, catalogue, kernels = self._k, self._catalogue, self._kernels
        bounds, rounded = catalogue.bounds(queries)
        most = int(histories.bincount(minlength=len(queries)).max())
        wanted = k + int(SPARE_SHARE * k) + SPARE + min(most, SPARE_LEFT_OUT)
        wanted = min(wanted, catalogue.num_groups)
        upper, groups = _largest(bounds, wanted)
        group, inside = kernels.places_of(items)
        # Where each group stands among those chosen, or -1, in the memory of the bounds.
        numbers = torch.arange(wanted, dtype=torch.int32, device=groups.device)
        place = bounds.view(torch.int32).fill_(-1).scatter_(1, groups, numbers.expand_as(groups))
        at = place[histories, group].long()
        # The best of a group may be left out; -1 is the column behind all.
        counted = torch.ones(len(queries), wanted + 1, dtype=torch.bool, device=groups.device)
        counted[histories, at] = False
        reached = self._reached(rounded, upper, groups, counted[:, :wanted])
        # Bounds fall, so that these are the first ones.
        alive = (upper >= reached[:, None]) & (upper > -torch.inf)
        width = max(1, int(alive.sum(1).max()))
        chosen = torch.where(alive, groups, -1)[:, :width]
        found = catalogue.scores(queries, chosen)
        kept = (at >= 0) & (at < width)
        found[histories[kept], at[kept], inside[kept]] = -torch.inf
        found = found.flatten(1)
        missing = max(0, k + 1 - found.shape[1])
        scores, picked = pad(found, (0, missing), value=-torch.inf).topk(k + 1)
        lowest, following = scores[:, k - 1], scores[:, k]
        scores, picked = scores[:, :k], picked[:, :k].clamp(max=found.shape[1] - 1)
        rows = kernels.items_of(chosen.gather(1, picked // kernels.GROUP), picked % kernels.GROUP)
        beyond = upper[:, -1]
        # A comparison with what is not a number is false.
        sure = (upper[:, 0] < torch.inf) & ((following < lowest) | (lowest == -torch.inf))
        if wanted < catalogue.num_groups:
            sure &= (lowest > beyond) | (beyond == -torch.inf)
        return *scoring.in_order(rows, scores), sure

    def _reached(self, rounded: Any, upper: Tensor, groups: Tensor, counted: Tensor) -> Tensor:
        """What the k-th best score is at least, [n]; -inf where that is not known.

        Args:
            upper: bounds of the chosen groups, falling, [n, c].
            counted: groups whose best item may be recommended, bool [n, c].
        """
        rounding = 4 * self._kernels.OFFSET_ERROR * upper.abs()
        lower = upper - self._catalogue.slack(rounded, groups) - rounding
        number = counted.cumsum(1)
        first = counted & (number <= self._k)
        least = lower.masked_fill(~first, torch.inf).amin(1)
        return least.masked_fill(number[:, -1] < self._k, -torch.inf)


def _largest(bounds: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest ``count`` of each row, falling, and where they stand."""
    whole = bounds.shape[1] // COARSE
    if whole < 2 * count:
        return bounds.topk(count)
    # They stand in the coarse groups with the largest maxima; what is left over is one of them.
    maxima = bounds[:, : whole * COARSE].view(len(bounds), whole, COARSE).amax(2)
    coarse = maxima.topk(count).indices
    places = (coarse[:, :, None] * COARSE + torch.arange(COARSE, device=bounds.device)).flatten(1)
    rest = torch.arange(whole * COARSE, bounds.shape[1], device=bounds.device)
    places = torch.cat((places, rest.expand(len(bounds), -1)), 1)
    upper, picked = bounds.gather(1, places).topk(count)
    return upper, places.gather(1, picked)
