"""What goes through attention layers, added up over batches, exact whatever the batches are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blossomrec.attention import BlossomAttention
from blossomrec.attention.packing import Packing
from blossomrec.evaluation.significance import LEVEL, bootstrap_means
from blossomrec.report.attention_profile import Attended
from blossomrec.report.inspect.selection_measures import (
    RANKS,
    attention_coverage,
    choices_by_block,
    choosing_rows,
    evenness,
    pattern_coverage,
    ranked,
)

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
MASSES = ("covered", "best", "random", "own", "short_term")


@dataclass(frozen=True)
class Ratio:
    """A ratio of two means over events, with its 95 % bootstrap interval over histories."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class HeadChoices:
    """What one key/value head selects, over events with a choice.

    Attributes:
        covered, best, random, own: mean shares of attention, see
            :class:`blossomrec.report.inspect.selection_measures.Mass`.
        short_term: mean share of attention on what the short-term path sees.
        ratio: covered / best.
        distances: ``QUANTILES`` of the distance to selected blocks, from start to start, events.
        distance_shares: share of each such distance, in blocks, float64.
        hub_shares: share of a history's choosing events that select its most often selected
            block, the next one, and so on; mean over choosing events, float64 [RANKS].
        entropy: of the choices within a history, over the largest possible; mean over choosing
            events.
    """

    covered: float
    best: float
    random: float
    own: float
    short_term: float
    ratio: Ratio
    distances: tuple[int, ...]
    distance_shares: np.ndarray
    hub_shares: np.ndarray
    entropy: float


@dataclass(frozen=True, eq=False)
class LayerChoices:
    """One layer; ``gates`` [H, 2] are mean weights of long-term and short-term path, of a union the
    mean shares of the attention on the keys of either, and ``gate_balance`` [H] is the mean of the
    long-term one over the sum of both."""

    heads: tuple[HeadChoices, ...]
    gates: np.ndarray
    gate_balance: np.ndarray


class LayerTotals:
    """Sums of one layer over batches.

    Args:
        attention: the layer.
        histories: how many there are in all batches together.
        longest: events of the longest one.
    """

    def __init__(self, attention: BlossomAttention, *, histories: int, longest: int):
        heads, self._size = attention.heads.keys, attention.spec.block_size
        # By history, so that intervals can draw histories again.
        self.mass = np.zeros((histories, len(MASSES), heads))
        self._distances = np.zeros((heads, -(-longest // self._size)), dtype=np.int64)
        self._hub_counts, self._entropy = np.zeros((heads, RANKS)), np.zeros(heads)
        self._gates = np.zeros((attention.heads.queries, 2))
        self._balance = np.zeros(attention.heads.queries)
        self._events = 0

    def add(
        self, attended: Attended, cu_seqlens: Tensor, rows: Tensor, histories: np.ndarray
    ) -> None:
        """Add a batch.

        Args:
            rows: int64 [C], packed rows of the events whose attention is measured.
            histories: int64 [C], number of the history of each among those of all batches.
        """
        layer, output = attended.layer, attended.output
        assert output.selected is not None
        choosing = choosing_rows(
            cu_seqlens,
            len(output.selected),
            block_size=layer.spec.block_size,
            top_n=layer.spec.top_n,
            causal=layer.spec.causal,
        )
        np.add.at(self.mass, histories, _mass(attended, cu_seqlens, rows))
        self._add_distances(output.selected, cu_seqlens, choosing)
        for events, counts in choices_by_block(
            output.selected, cu_seqlens, block_size=layer.spec.block_size, causal=layer.spec.causal
        ):
            self._hub_counts += ranked(_array(counts))
            self._entropy += events * _array(evenness(counts))
        gates = attended.shares(cu_seqlens)[choosing].double()
        self._gates += _array(gates.sum(0))
        self._balance += _array((gates[..., 0] / gates.sum(-1)).sum(0))
        self._events += len(choosing)

    def _add_distances(self, selected: Tensor, cu_seqlens: Tensor, choosing: Tensor) -> None:
        own = Packing.of(cu_seqlens, len(selected), self._size).block
        away = (own[choosing, None, None] - selected[choosing]).abs()
        heads, width = self._distances.shape
        away += torch.arange(heads, device=away.device)[:, None] * width
        counts = torch.bincount(away.flatten(), minlength=heads * width)
        self._distances += counts.view(heads, width).cpu().numpy()

    def choices(self, measured: np.ndarray, seed: int) -> LayerChoices:
        """What was added, in the mean.

        Args:
            measured: int64 [histories], events of each whose attention was measured.
            seed: of the intervals.
        """
        mean = self.mass.sum(0) / measured.sum()
        heads = range(self.mass.shape[2])
        return LayerChoices(
            heads=tuple(
                HeadChoices(
                    **dict(zip(MASSES, mean[:, head].tolist(), strict=True)),
                    ratio=mass_ratio(self.mass[:, :, head], measured, seed),
                    distances=tuple(
                        (self._size * quantiles_of_counts(self._distances[head])).tolist()
                    ),
                    distance_shares=self._distances[head] / self._distances[head].sum(),
                    hub_shares=self._hub_counts[head] / self._events,
                    entropy=float(self._entropy[head] / self._events),
                )
                for head in heads
            ),
            gates=self._gates / self._events,
            gate_balance=self._balance / self._events,
        )


def mass_ratio(mass: np.ndarray, measured: np.ndarray, seed: int) -> Ratio:
    """Covered over best attention.

    Args:
        mass: float64 [histories, len(MASSES)], sums over the measured events of each.
        measured: int64 [histories], how many these are; a history without any is not drawn.
        seed: of the interval.
    """
    sums = mass[measured > 0][:, [MASSES.index("covered"), MASSES.index("best")]]
    drawn = bootstrap_means(sums, seed=seed)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (tail, 1 - tail))
    covered, best = sums.sum(0)
    return Ratio(float(covered / best), float(low), float(high))


def _mass(attended: Attended, cu_seqlens: Tensor, rows: Tensor) -> np.ndarray:
    """Shares of attention, in the order of ``MASSES``: float64 [C, len(MASSES), G]."""
    layer, selected = attended.layer, attended.output.selected
    assert selected is not None
    mass = attention_coverage(
        attended.q,
        attended.k,
        selected,
        cu_seqlens,
        rows,
        block_size=layer.spec.block_size,
        causal=layer.spec.causal,
    )
    short_term = pattern_coverage(
        attended.q,
        attended.k,
        cu_seqlens,
        rows,
        spec=layer.spec,
    )
    return _array(torch.stack((mass.covered, mass.best, mass.random, mass.own, short_term), 1))


def quantiles_of_counts(counts: np.ndarray) -> np.ndarray:
    """``QUANTILES`` of values 0, 1, ... that occur ``counts`` times, or with such shares."""
    below = np.cumsum(counts)
    return np.searchsorted(below, np.asarray(QUANTILES) * below[-1])


def _array(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
