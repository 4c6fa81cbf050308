# A kernel takes numbers where it declares constexpr.
# pyright: reportArgumentType=false, reportCallIssue=false
"""Scores of a catalogue by kernels: bounds of groups of items in 16 bits, exact scores of some.

The first product is one of matrices rounded to float16, the fastest that there is. What rounding
takes from a vector is measured, and by Cauchy and Schwarz it bounds the error of every score, so
that a group has a bound which none of its scores exceeds: exact scores, in float32, are needed of
few groups. Scaled by powers of two, float16 has eight times the precision of bfloat16, and vectors
of whatever size fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from blossomrec.attention.backends.gpu.products import cdiv, next_power_of_2
from blossomrec.models.fused.kernels.catalogue_scores import (
    group_bounds_kernel,
    group_scores_kernel,
    lse_kernel,
)

LARGEST_SIZE = 256
# Items of a group, and groups side by side; their product is the stripe that is written together.
GROUP, LANES = 32, 8
STRIPE = GROUP * LANES
# Users and items of a tile, warps and stages, by the size of vectors.
FORMS = {128: (256, 64, 8, 3), 256: (128, 64, 8, 3)}
# Stripes of a program.
EACH = 16
SCORE_WARPS = 2
# The same for sums of exponentials, and tiles of a program: always as many, so that a sum depends
# on nothing but its user.
LSE_FORMS = {128: (128, 64, 8, 3), 256: (64, 64, 4, 2)}
LSE_TILES = 256
# Largest exponent of a rounded number, one less than float16 has.
EXPONENT = 15
# In units, what 1 in a rest stands for.
REST_UNIT = 2.0**-11
# Items that are rounded at a time.
ROUNDED_ROWS = 1 << 16
# Of the product of two norms, for each number: what sums lose in float32, in tensor cores as well.
SUM_ERROR = 2.0**-21
# Relative error of adding an offset, and of the bound itself.
OFFSET_ERROR = 2.0**-21


def takes(vectors: Tensor) -> bool:
    """Whether the kernels take vectors of this size, and in memory as they lie."""
    return vectors.shape[1] <= LARGEST_SIZE


@dataclass(frozen=True)
class Rounded:
    """Vectors in float16, and how far they are from what they stand for.

    Attributes:
        values: float16 [N, D_BLOCK], in units, zeros behind the D numbers.
        units: powers of two, float32 [N].
        sizes: norms of the vectors, float32 [N].
        errors: norms of what rounding took, float32 [N].
    """

    values: Tensor
    units: Tensor
    sizes: Tensor
    errors: Tensor

    @staticmethod
    def of(vectors: Tensor, units: Tensor) -> Rounded:
        exact = vectors.float() / units[:, None]
        values = exact.half()
        lost = (exact - values.float()).norm(dim=1) * units
        return Rounded(_padded(values), units, exact.norm(dim=1) * units, lost)

    def rests(self, vectors: Tensor) -> Tensor:
        """What was lost of the vectors in units, float16 [N, D_BLOCK], as numbers of REST_UNIT."""
        exact = _padded(vectors.float() / self.units[:, None])
        return ((exact - self.values.float()) / REST_UNIT).half()


class GroupedCatalogue:
    """Vectors of a catalogue, whose items are looked at in groups.

    Group g has the items :meth:`items_of` gives; there are G, the last stripe filled up with items
    that are not there and have a score of -inf.

    Args:
        vectors: [I, D], D at most LARGEST_SIZE.
        offsets: what is added to the scores, float32 [I]; -inf leaves an item out. None adds
            nothing.
    """

    def __init__(self, vectors: Tensor, offsets: Tensor | None = None):
        vectors = vectors.detach().contiguous()
        self.vectors, (self.num_items, size) = vectors, vectors.shape
        self.stripes = cdiv(self.num_items, STRIPE)
        self.num_groups = self.stripes * LANES
        padded = self.stripes * STRIPE
        self.offsets = vectors.new_full((padded,), -torch.inf, dtype=torch.float32)
        self.offsets[: self.num_items] = 0.0 if offsets is None else offsets
        low, high = torch.aminmax(vectors)
        self._unit = _unit(torch.maximum(-low, high).float())
        self._table = vectors.new_zeros(padded, _block(size), dtype=torch.float16)
        sizes, errors = vectors.new_zeros(2, padded, dtype=torch.float32).unbind()
        for start in range(0, self.num_items, ROUNDED_ROWS):
            stop = min(start + ROUNDED_ROWS, self.num_items)
            part = self._rounded(start, stop)
            self._table[start:stop] = part.values
            sizes[start:stop], errors[start:stop] = part.sizes, part.errors
        self._sizes, self._errors = (
            each.view(self.stripes, GROUP, LANES).amax(1).flatten() for each in (sizes, errors)
        )

    def _rounded(self, start: int, stop: int) -> Rounded:
        return Rounded.of(self.vectors[start:stop], self._unit.expand(stop - start))

    @cached_property
    def _rests(self) -> Tensor:
        rests = torch.zeros_like(self._table)
        for start in range(0, self.num_items, ROUNDED_ROWS):
            stop = min(start + ROUNDED_ROWS, self.num_items)
            rests[start:stop] = self._rounded(start, stop).rests(self.vectors[start:stop])
        return rests

    def bounds(self, queries: Tensor) -> tuple[Tensor, Rounded]:
        """What no score of a group exceeds, float32 [n, G], and the queries that were rounded.

        Args:
            queries: float32 [n, D].
        """
        rounded = Rounded.of(queries, _unit(queries.abs().amax(1)))
        # Norms are rounded, too.
        errors = rounded.errors * (1 + 2**-10) + rounded.sizes * (SUM_ERROR * queries.shape[1])
        rounded = Rounded(rounded.values, rounded.units, rounded.sizes * (1 + 2**-10), errors)
        bounds = queries.new_empty(len(queries), self.num_groups)
        height, width, warps, stages = _form(FORMS, queries.shape[1])
        grid = cdiv(len(queries), height), cdiv(self.stripes, EACH)
        group_bounds_kernel[grid](
            rounded.values,
            self._table,
            self.offsets,
            rounded.units * self._unit,
            rounded.sizes,
            rounded.errors,
            self._sizes,
            self._errors,
            bounds,
            len(queries),
            self.stripes,
            EACH,
            OFFSET_ERROR,
            D_BLOCK=self._table.shape[1],
            ROWS=height,
            ITEMS=width,
            GROUP=GROUP,
            LANES=LANES,
            num_warps=warps,
            num_stages=stages,
        )
        return bounds, rounded

    def slack(self, rounded: Rounded, groups: Tensor) -> Tensor:
        """By how much a bound may exceed the best score of its group, [n, c], besides offsets."""
        sizes, errors = self._sizes[groups], self._errors[groups]
        return 2 * (rounded.sizes[:, None] * errors + rounded.errors[:, None] * sizes)

    def scores(self, queries: Tensor, groups: Tensor) -> Tensor:
        """Exact scores of all items of some groups, offsets added, float32 [n, c, GROUP].

        Args:
            queries: float32 [n, D].
            groups: int64 [n, c]; -1 has no items, and scores of -inf.
        """
        queries, groups, count = queries.contiguous(), groups.contiguous(), groups.shape[1]
        scores = queries.new_empty(len(queries), count, GROUP)
        group_scores_kernel[(groups.numel(),)](
            queries,
            self.vectors,
            self.offsets,
            groups,
            scores,
            self.num_items,
            count,
            torch.finfo(torch.float32).min,
            D=queries.shape[1],
            D_BLOCK=self._table.shape[1],
            GROUP=GROUP,
            LANES=LANES,
            num_warps=SCORE_WARPS,
        )
        return scores

    def lse(self, queries: Tensor) -> Tensor:
        """Logarithms of summed exponentials of all scores without offsets, float32 [n]."""
        rounded = Rounded.of(queries, _unit(queries.abs().amax(1)))
        height, width, warps, stages = _form(LSE_FORMS, queries.shape[1])
        parts = cdiv(self.num_items, width * LSE_TILES)
        lse = queries.new_empty(parts, len(queries))
        lse_kernel[(cdiv(len(queries), height), parts)](
            rounded.values,
            rounded.rests(queries),
            self._table,
            self._rests,
            rounded.units * self._unit,
            lse,
            len(queries),
            self.num_items,
            LSE_TILES,
            REST_UNIT,
            D_BLOCK=self._table.shape[1],
            ROWS=height,
            ITEMS=width,
            num_warps=warps,
            num_stages=stages,
        )
        return lse.double().logsumexp(0).float()

    def pair_scores(self, queries: Tensor, rows: Tensor, items: Tensor) -> Tensor:
        """Exact scores of items by the queries in some rows, without offsets, float32 [N]."""
        parts = zip(rows.split(ROUNDED_ROWS), items.split(ROUNDED_ROWS), strict=True)
        return torch.cat([(queries[row] * self.vectors[item]).sum(1) for row, item in parts])

    def all_scores(self, queries: Tensor) -> Tensor:
        """Exact scores of all items, by item, float32 [n, I in whole stripes]."""
        groups = torch.arange(self.num_groups, device=queries.device).expand(len(queries), -1)
        scores = self.scores(queries, groups).view(len(queries), self.stripes, LANES, GROUP)
        return scores.transpose(2, 3).reshape(len(queries), -1)


def items_of(groups: Tensor, places: Tensor) -> Tensor:
    """Item rows by their groups and their places in these."""
    return groups // LANES * STRIPE + places * LANES + groups % LANES


def places_of(items: Tensor) -> tuple[Tensor, Tensor]:
    """The groups of item rows, and their places in these."""
    return items // STRIPE * LANES + items % LANES, items % STRIPE // LANES


def _form(forms: dict[int, tuple[int, int, int, int]], size: int) -> tuple[int, int, int, int]:
    return next(form for largest, form in forms.items() if size <= largest)


def _unit(largest: Tensor) -> Tensor:
    """Powers of two by which numbers as large as ``largest`` are divided, to fit float16."""
    exponent = torch.frexp(largest).exponent - EXPONENT
    return torch.ldexp(torch.ones_like(largest), exponent.clamp(-100, 100))


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, _block(x.shape[1]) - x.shape[1]))


def _block(size: int) -> int:
    return max(16, next_power_of_2(size))
