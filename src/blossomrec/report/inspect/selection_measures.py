"""Measures of a block selector: what it finds, how much attention it keeps, how it spreads.

"Everything" is what dense attention with the same queries and keys would see: all earlier events
and the event itself, or both directions. A *choosing* event has more eligible blocks than may be
selected; for the others any selector is right. What a uniform choice would do follows from lengths
alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from blossomrec.attention.packing import Packing
from blossomrec.attention.spec import BlossomSpec

# Attention scores held at a time.
_TILE_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class Mass:
    """Shares of the attention to everything, float32 [C, G], mean over the heads of a group.

    Attributes:
        covered: share of the selected blocks.
        best: share of the n eligible blocks with the largest shares, which no selection exceeds.
        own: share of the event's own block, which is attended without being selected.
        random: share that n eligible blocks drawn at random cover on average.
    """

    covered: Tensor
    best: Tensor
    own: Tensor
    random: Tensor


def choosing_rows(
    cu_seqlens: Tensor, total: int, *, block_size: int, top_n: int, causal: bool
) -> Tensor:
    """Packed rows of the events with more than ``top_n`` eligible blocks, int64 [C]."""
    eligible = _eligible_blocks(Packing.of(cu_seqlens, total, block_size), causal)
    return (eligible > top_n).nonzero()[:, 0]


def attention_coverage(
    q: Tensor,
    k: Tensor,
    selected: Tensor,
    cu_seqlens: Tensor,
    rows: Tensor,
    *,
    block_size: int,
    causal: bool,
) -> Mass:
    """How much of the attention to everything falls on the selected blocks, and how much could.

    Softmax of q k / sqrt(d) in float32, over every event that dense attention would see, summed by
    block. Memory grows with the longest history, not with its square.

    Args:
        q: [T, H, d] and k: [T, G, d], rotary applied.
        selected: int32 [T, G, n].
        cu_seqlens: int32 [B+1].
        rows: int64 [C], packed rows of the events that are measured.
    """
    packing = Packing.of(cu_seqlens, len(q), block_size)
    parts = torch.empty(4, len(rows), k.shape[1], device=q.device)
    for places, shares in _attention(q, k, packing, cu_seqlens, rows, causal):
        mass = pad(shares, (0, -shares.shape[-1] % block_size))
        mass = mass.unflatten(-1, (-1, block_size)).sum(-1)
        chosen = rows[places]
        parts[:, places] = _shares(mass, selected[chosen], packing, chosen, causal)
    return Mass(*parts)


def pattern_coverage(
    q: Tensor,
    k: Tensor,
    cu_seqlens: Tensor,
    rows: Tensor,
    *,
    spec: BlossomSpec,
) -> Tensor:
    """How much of the attention to everything falls on what the short-term path sees.

    Arguments as of :func:`attention_coverage`, ``spec`` as of the attention.

    Returns:
        float32 [C, G], mean over the heads of a group.
    """
    packing, sinks, causal = Packing.of(cu_seqlens, len(q), 1), spec.sinks, spec.causal
    covered = torch.empty(len(rows), k.shape[1], device=q.device)
    for places, shares in _attention(q, k, packing, cu_seqlens, rows, causal):
        chosen = rows[places]
        key = torch.arange(shares.shape[-1], device=q.device)
        distance = (packing.position[chosen, None] - key).abs()
        edge = sinks if causal else packing.length[chosen, None] - sinks
        visible = spec.pattern.is_visible(distance) | ((key < edge) if causal else (key >= edge))
        covered[places] = shares.masked_fill(~visible[:, None], 0.0).sum(-1)
    return covered


def _attention(
    q: Tensor, k: Tensor, packing: Packing, cu_seqlens: Tensor, rows: Tensor, causal: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tile by tile: places in ``rows``, all of one history of L events, and the attention of
    these events to each of its first L' <= L ones, float32 [C, G, L']."""
    order = rows.argsort()
    for history in packing.history[rows].unique().tolist():
        first, last = cu_seqlens[history : history + 2].tolist()
        mine = order[packing.history[rows[order]] == history]
        tile = max(1, _TILE_ELEMENTS // (q.shape[1] * (last - first)))
        for places in mine.split(tile):
            chosen = rows[places]
            # Under causality, nothing behind the tile's last event is seen.
            seen = k[first : int(chosen[-1]) + 1] if causal else k[first:last]
            yield places, _softmax(q[chosen], seen, packing.position[chosen], causal)


def _softmax(q: Tensor, k: Tensor, position: Tensor, causal: bool) -> Tensor:
    """Attention of q [C, H, d] to one history's k [L, G, d], float32 [C, G, L]."""
    grouped = q.float().unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("cgrd,lgd->cgrl", grouped, k.float()) / math.sqrt(q.shape[-1])
    if causal:
        later = torch.arange(len(k), device=k.device) > position[:, None]
        scores = scores.masked_fill(later[:, None, None], -math.inf)
    return scores.softmax(-1).mean(2)


def _shares(mass: Tensor, selected: Tensor, packing: Packing, rows: Tensor, causal: bool) -> Tensor:
    """The parts of Mass, [4, C, G], from mass [C, G, blocks] and selected [C, G, n]."""
    own = packing.block[rows, None]
    number = torch.arange(mass.shape[-1], device=mass.device)
    eligible = (number < own) if causal else (number < packing.num_blocks[rows, None])
    eligible = eligible & (number != own)
    able = mass.masked_fill(~eligible[:, None], 0.0)
    covered = mass.gather(-1, selected.clamp(min=0).long()).masked_fill(selected < 0, 0.0).sum(-1)
    best = able.topk(min(selected.shape[-1], mass.shape[-1])).values.sum(-1)
    inside = mass.gather(-1, own[:, None].expand_as(covered[..., None]))[..., 0]
    drawn = (selected.shape[-1] / eligible.sum(-1).clamp(min=1)).clamp(max=1)
    return torch.stack((covered, best, inside, able.sum(-1) * drawn[:, None]))


def evenness(counts: Tensor) -> Tensor:
    """Entropy of the shares of the last dimension over its largest possible value."""
    part = counts / counts.sum(-1, keepdim=True)
    return -part.xlogy(part).sum(-1) / math.log(counts.shape[-1])


def choices_by_block(
    selected: Tensor, cu_seqlens: Tensor, *, block_size: int, causal: bool
) -> Iterator[tuple[int, Tensor]]:
    """For each history with choosing events, in order: their number, and how many of them select
    each of its complete blocks, float32 [G, blocks], from ``selected``, int32 [T, G, n]."""
    total, groups, top_n = selected.shape
    packing = Packing.of(cu_seqlens, total, block_size)
    rows = choosing_rows(cu_seqlens, total, block_size=block_size, top_n=top_n, causal=causal)
    chosen = selected[rows]
    blocks = packing.first_block[rows, None, None] + chosen.clamp(min=0)
    heads = torch.arange(groups, device=selected.device)[:, None].expand_as(blocks)
    choices = torch.zeros(groups, total // block_size, device=selected.device)
    choices.index_put_((heads, blocks), (chosen >= 0).float(), accumulate=True)
    for history in packing.history[rows].unique().tolist():
        mine = rows[packing.history[rows] == history]
        first, blocks_there = int(packing.first_block[mine[0]]), int(packing.num_blocks[mine[0]])
        yield len(mine), choices[:, first : first + blocks_there]


def _eligible_blocks(packing: Packing, causal: bool) -> Tensor:
    """Number of blocks that each row may select from, int64 [T]."""
    if causal:
        return packing.block
    return packing.num_blocks - (packing.block < packing.num_blocks).long()


# Blocks of a history that are told apart by how often they are selected.
RANKS = 20


@dataclass(frozen=True)
class SelectionForm:
    """The options of an attention that decide which blocks may be selected."""

    block_size: int
    top_n: int
    causal: bool


def first_choosing(lengths: np.ndarray, form: SelectionForm) -> np.ndarray:
    """Position of each history's first event with more than ``top_n`` eligible blocks, int64 [B].

    All later events have a choice as well; it is the length of the history where no event has.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if form.causal:
        return np.minimum((form.top_n + 1) * form.block_size, lengths)
    complete = lengths // form.block_size
    # Events behind the last complete block have one block more to choose from than the others.
    return np.select(
        [complete > form.top_n + 1, complete == form.top_n + 1],
        [np.zeros_like(lengths), complete * form.block_size],
        lengths,
    )


def sample_choosing(
    lengths: np.ndarray, form: SelectionForm, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most ``size`` of all events with a choice, each as likely as every other.

    Returns:
        Numbers of their histories, rising, and their positions there, int64 [size].
    """
    first = first_choosing(lengths, form)
    edges = np.concatenate([[0], np.cumsum(lengths - first)])
    size = min(size, int(edges[-1]))
    drawn = np.random.default_rng(seed).choice(edges[-1], size, replace=False, shuffle=False)
    drawn.sort()
    history = np.searchsorted(edges, drawn, side="right") - 1
    return history, first[history] + drawn - edges[history]


@dataclass(frozen=True, eq=False)
class UniformChoice:
    """What is expected where ``top_n`` of the eligible blocks are drawn, all alike.

    Attributes:
        distances: share of each distance between selected and own block, in blocks, float64.
        hub_shares: share of a history's choosing events that select its most often selected
            block, the next one, and so on; mean over choosing events, float64 [RANKS].
        entropy: as of :class:`blossomrec.report.inspect.selection_measures.Hubness`, of the
            expected choices, mean over choosing events.
    """

    distances: np.ndarray
    hub_shares: np.ndarray
    entropy: float


def uniform_choice(lengths: np.ndarray, form: SelectionForm) -> UniformChoice:
    """Expectation over histories of ``lengths``, at least one of which has a choice."""
    lengths, times = np.unique(lengths, return_counts=True)
    first = first_choosing(lengths, form)
    distances = np.zeros(-(-int(lengths[-1]) // form.block_size))
    hub_shares, entropy = np.zeros(RANKS), 0.0
    for length, start, weight in zip(lengths, first, times * (lengths - first), strict=True):
        if not weight:
            continue
        own, expected = _expected_choices(int(length), int(start), form)
        away = np.abs(own[:, None] - np.arange(expected.shape[1]))
        histories = weight / (length - start)
        distances += histories * np.bincount(away.ravel(), expected.ravel(), len(distances))
        counts = expected.sum(0)
        hub_shares += histories * ranked(counts)
        entropy += weight * evenness(torch.from_numpy(counts)).item()
    events = float((times * (lengths - first)).sum())
    return UniformChoice(distances / distances.sum(), hub_shares / events, entropy / events)


def ranked(counts: np.ndarray) -> np.ndarray:
    """The ``RANKS`` largest of the last dimension, falling, filled up with zeros."""
    largest = -np.sort(-counts, axis=-1)[..., :RANKS]
    missing = [(0, 0)] * (counts.ndim - 1) + [(0, RANKS - largest.shape[-1])]
    return np.pad(largest, missing)


def _expected_choices(
    length: int, start: int, form: SelectionForm
) -> tuple[np.ndarray, np.ndarray]:
    """Own blocks [W] of a history's choosing events, and how many of the events of each would
    select each complete block, float64 [W, blocks]."""
    own, events = np.unique(np.arange(start, length) // form.block_size, return_counts=True)
    block = np.arange(length // form.block_size)
    eligible = block < own[:, None] if form.causal else block != own[:, None]
    chance = form.top_n / eligible.sum(1)
    return own, eligible * (events * chance)[:, None]
