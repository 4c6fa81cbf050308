"""What the selector of each layer of a trained model does, on a batch of histories."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from blossomrec.attention import BlossomAttention
from blossomrec.attention.packing import Packing
from blossomrec.data.batch import Batch
from blossomrec.models.sequence import SequenceModel
from blossomrec.report.attention_profile import Attended, recorded
from blossomrec.report.inspect.selection_measures import (
    attention_coverage,
    choices_by_block,
    choosing_rows,
    evenness,
)

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class LayerSelection:
    """Measures of one layer; ``Mass`` and ``Hubness`` say how they are defined.

    Attributes:
        recall: for each key/value head, recall of the planted blocks; None if none were named.
        recall_any: share of the planted blocks that at least one head selects; None likewise.
        mass_covered, mass_best, mass_own: for each key/value head, mean shares of attention.
        mass_ratio: for each key/value head, mass_covered / mass_best.
        largest_share, entropy: for each key/value head, its hubness.
        gate_balance: for each query head, the long-term path's share of the two gates, or of the
            weight of a union.
        distances: 0.1, 0.25, 0.5, 0.75 and 0.9 quantile of the distance to selected blocks, events.
    """

    recall: tuple[float, ...] | None
    recall_any: float | None
    mass_covered: tuple[float, ...]
    mass_best: tuple[float, ...]
    mass_own: tuple[float, ...]
    mass_ratio: tuple[float, ...]
    largest_share: tuple[float, ...]
    entropy: tuple[float, ...]
    gate_balance: tuple[float, ...]
    distances: tuple[float, ...]


@dataclass(frozen=True)
class SelectionMeasures:
    """Measures of all layers; ``recall_any``: share of the planted blocks that some head of some
    layer selects, None if none were named."""

    layers: tuple[LayerSelection, ...]
    recall_any: float | None


@torch.no_grad()
def measure_selection(
    model: SequenceModel,
    batch: Batch,
    *,
    rows: Tensor | None = None,
    planted: Tensor | None = None,
    sample: int = 1_024,
    seed: int = 0,
) -> SelectionMeasures:
    """Run a model in evaluation mode over a batch and measure the selector of each layer.

    Attention mass and recall are of ``rows``, the rest is of all events.

    Args:
        model: with Blossom attention, all layers with the same options.
        batch: on the model's device.
        rows: int64 [M], packed rows of the events to measure; those without a choice are left out.
            Default: ``sample`` choosing events, drawn with ``seed``.
        planted: int64 [M], for each of ``rows`` the block that should be selected; events whose
            own block it is are left out.

    Raises:
        ValueError: the model has no Blossom attention, ``planted`` comes without ``rows``, or no
            event is left to measure.
    """
    if planted is not None and rows is None:
        raise ValueError("planted is given without rows, the events it belongs to")
    with recorded(model) as found:
        model.encode(batch)
    if not found:
        raise ValueError("the model has no Blossom attention, so nothing selects")
    rows, planted = _measured_rows(found[0].layer, batch, rows, planted, sample, seed)
    layers = tuple(_measure_layer(each, batch.cu_seqlens, rows, planted) for each in found)
    recall = None
    if planted is not None:
        hits = [planted_hits(_selected(each), rows, planted).any(-1) for each in found]
        recall = torch.stack(hits).any(0).float().mean().item()
    return SelectionMeasures(layers, recall)


def _measured_rows(
    layer: BlossomAttention,
    batch: Batch,
    rows: Tensor | None,
    planted: Tensor | None,
    sample: int,
    seed: int,
) -> tuple[Tensor, Tensor | None]:
    choosing = choosing_rows(
        batch.cu_seqlens,
        len(batch.items),
        block_size=layer.spec.block_size,
        top_n=layer.spec.top_n,
        causal=layer.spec.causal,
    )
    if rows is None:
        drawn = torch.randperm(len(choosing), generator=torch.Generator().manual_seed(seed))
        rows = choosing[drawn[:sample].to(choosing.device)]
    else:
        kept = torch.isin(rows, choosing)
        if planted is not None:
            packing = Packing.of(batch.cu_seqlens, len(batch.items), layer.spec.block_size)
            kept &= planted != packing.block[rows]
            planted = planted[kept]
        rows = rows[kept]
    if not len(rows):
        raise ValueError(
            f"no event to measure has more than top_n, {layer.spec.top_n}, blocks to choose from"
        )
    return rows, planted


def _measure_layer(
    attended: Attended, cu_seqlens: Tensor, rows: Tensor, planted: Tensor | None
) -> LayerSelection:
    layer, selected = attended.layer, _selected(attended)
    form = {"block_size": layer.spec.block_size, "causal": layer.spec.causal}
    mass = attention_coverage(attended.q, attended.k, selected, cu_seqlens, rows, **form)
    covered, best, own = mass.covered.mean(0), mass.best.mean(0), mass.own.mean(0)
    hubs = hubness(selected, cu_seqlens, **form)
    hits = None if planted is None else planted_hits(selected, rows, planted).float()
    distances = selected_distances(selected, cu_seqlens, layer.spec.block_size).double()
    return LayerSelection(
        recall=None if hits is None else _numbers(hits.mean(0)),
        recall_any=None if hits is None else hits.amax(-1).mean().item(),
        mass_covered=_numbers(covered),
        mass_best=_numbers(best),
        mass_own=_numbers(own),
        mass_ratio=_numbers(covered / best),
        largest_share=_numbers(hubs.largest_share),
        entropy=_numbers(hubs.entropy),
        gate_balance=_numbers(gate_balance(attended.shares(cu_seqlens))),
        distances=_numbers(_quantiles(distances)),
    )


def _selected(attended: Attended) -> Tensor:
    assert attended.output.selected is not None
    return attended.output.selected


def _quantiles(values: Tensor) -> Tensor:
    """Of any number of values; torch.quantile takes 16 million at most."""
    places = torch.tensor(_QUANTILES, device=values.device) * (len(values) - 1)
    return values.sort().values[places.round().long()]


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(values.tolist())


def planted_hits(selected: Tensor, rows: Tensor, planted: Tensor) -> Tensor:
    """Whether each named block is among those selected for its event.

    The mean over events is recall@n, by key/value head; ``any(-1)`` joins the heads.

    Args:
        selected: int32 [T, G, n].
        rows: int64 [M], packed rows of the events.
        planted: int64 [M], a block number in the history of each.

    Returns:
        bool [M, G].
    """
    return (selected[rows] == planted[:, None, None]).any(-1)


@dataclass(frozen=True)
class Hubness:
    """How unevenly the choosing events of a history choose, mean over histories, float32 [G].

    Attributes:
        largest_share: share of these events that select the block that most of them select.
        entropy: of the distribution of all choices over the history's complete blocks, over its
            largest possible value: 1 where all blocks are chosen equally often, 0 for one alone.
    """

    largest_share: Tensor
    entropy: Tensor


def hubness(selected: Tensor, cu_seqlens: Tensor, *, block_size: int, causal: bool) -> Hubness:
    """Whether a few blocks draw most choices, from ``selected``, int32 [T, G, n].

    NaN where no event has anything to choose.
    """
    shares, entropies = [], []
    for events, counts in choices_by_block(
        selected, cu_seqlens, block_size=block_size, causal=causal
    ):
        shares.append(counts.amax(-1) / events)
        entropies.append(evenness(counts))
    if not shares:
        return Hubness(*torch.full((2, selected.shape[1]), math.nan, device=selected.device))
    return Hubness(torch.stack(shares).mean(0), torch.stack(entropies).mean(0))


def gate_balance(gates: Tensor) -> Tensor:
    """Long-term gate over the sum of both, mean over events: [T, H, 2] to [H]."""
    return (gates[..., 0] / gates.sum(-1)).mean(0)


def selected_distances(selected: Tensor, cu_seqlens: Tensor, block_size: int) -> Tensor:
    """Distance in events from each event's own block to each block selected for it, from start to
    start, without sign: int64 [number of selected blocks], from int32 [T, G, n]."""
    own = Packing.of(cu_seqlens, len(selected), block_size).block[:, None, None]
    return ((own - selected).abs() * block_size)[selected >= 0]
