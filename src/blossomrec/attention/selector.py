"""Distillation of the selector: the importance of blocks follows the attention they would get.

Choosing blocks is a discrete step, so no gradient of the recommendation loss reaches the importance
by which they are chosen. Instead, for a sample of events, the softmax over the importance of *all*
eligible blocks is drawn to the share of attention that the heads would give those blocks. Sampled
are events with more eligible blocks than are selected: those of all others are selected anyway, and
the loss would only bend queries and keys. The shares are a fixed target. The gradient reaches the
compression, and through the importance also the queries and keys: a block has one key to be found
by, and only a model that is told so makes its queries and keys fit for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding

from blossomrec.attention.packing import Packing
from blossomrec.attention.spec import BlossomSpec

# Events of a batch that are sampled. Each looks at its whole history once, so their number must not
# grow with the batch: the cost of the loss is then linear in the length of a history.
SAMPLES = 512
# Scores held at a time; of very long histories fewer events are sampled.
MAX_SCORES = 1 << 25


class Sample(NamedTuple):
    """Sampled events in X runs of C events of one history each, and the blocks they choose from.

    rows: int64 [X, C], packed rows. starts: int64 [X], first row of each run's history. eligible:
    bool [X, C, 1, J], at least one block in each row.
    """

    rows: Tensor
    starts: Tensor
    eligible: Tensor


# Share of attention of each block: of q, k, cu_seqlens, a sample and the definition.
Shares = Callable[[Tensor, Tensor, Tensor, Sample, BlossomSpec], Tensor]


def block_shares(
    q: Tensor, k: Tensor, cu_seqlens: Tensor, sample: Sample, spec: BlossomSpec
) -> Tensor:
    """Share of attention that blocks get among each other, mean over a group's heads.

    Args:
        q: [T, H, d].
        k: [T, G, d].
        sample: X runs of C events.

    Returns:
        float32 [X, C, G, J], summing to one over the eligible blocks.
    """
    eligible = sample.eligible
    blocks = eligible.shape[-1]
    event = sample.starts[:, None] + torch.arange(blocks * spec.block_size, device=q.device)
    keys = k[event.clamp(max=len(k) - 1)].float().unflatten(1, (blocks, spec.block_size))
    queries = q[sample.rows].float().unflatten(2, (k.shape[1], -1)) / math.sqrt(q.shape[-1])
    scores = torch.einsum("xcgrd,xjsgd->xcgrjs", queries, keys)
    # There are many: they are changed where they are.
    scores.masked_fill_(~eligible[:, :, :, None, :, None], -math.inf)
    sums = scores.sub_(scores.amax((-2, -1), keepdim=True)).exp_().sum(-1)
    return (sums / sums.sum(-1, keepdim=True)).mean(3)


def selector_loss(
    q: Tensor,
    k: Tensor,
    block_keys: Tensor,
    cu_seqlens: Tensor,
    *,
    rows: Tensor,
    max_length: int,
    spec: BlossomSpec,
    shares: Shares = block_shares,
) -> Tensor:
    """Distillation: the softmax over importance against the mass of attention of each block.

    Args:
        q: [T, H, d], rotary applied.
        k: [T, G, d], rotary applied; only the target is made of it.
        block_keys: [N or more, G, d] keys of all complete blocks; their gradient is the way to the
            keys.
        cu_seqlens: int32 [B+1].
        rows: int64 [C], rising: packed rows of the events from which those with a choice are
            sampled; T, which is no row, may fill up the end.
        max_length: longest history, in events, or more.
        shares: computes the target.

    Returns:
        Scalar, Kullback-Leibler divergence in nats, mean over the sampled events and key/value
        heads; zero, still connected to ``q`` and ``block_keys``, where no event has more than
        ``top_n`` blocks to choose from.
    """
    blocks = max_length // spec.block_size
    if no_choice(blocks, rows, block_keys, spec):
        # Of one row: the sum of all may be more than a number of 16 bits holds.
        return 0.0 * (q[:1].float().sum() + block_keys[:1].float().sum())
    runs, together = sample_sizes(max_length, q.shape[1])
    groups, size = k.shape[1:]
    packing = Packing.of(cu_seqlens, len(q), spec.block_size)
    drawn = _draw(cu_seqlens, _first_choosing(cu_seqlens, spec), rows, runs, together)
    sampled = drawn.clamp(max=len(q) - 1)
    # The events of a run share a history, and with it its blocks.
    number = torch.arange(blocks, device=q.device)
    eligible = _eligible(packing, sampled, number, spec.causal)  # [runs, c, J]
    counted = (eligible.sum(-1) > spec.top_n) & (drawn < len(q))
    eligible = (eligible | ~counted[..., None])[:, :, None]
    sample = Sample(sampled, packing.start[sampled[:, 0]], eligible)
    with torch.autocast(q.device.type, enabled=False):
        target = shares(q.detach(), k.detach(), cu_seqlens, sample, spec)
        queries = _rows_of(q, sampled).unflatten(2, (groups, -1))  # [runs, c, G, R, d]
        found = _rows_of(block_keys, packing.first_block[sampled[:, :1]] + number)
        importance = torch.einsum("xcgd,xjgd->xcgj", queries.mean(3), found) / math.sqrt(size)
        return _divergence(importance, target, eligible, counted)


def no_choice(blocks: int, rows: Tensor, block_keys: Tensor, spec: BlossomSpec) -> bool:
    """Whether no event can have more than ``top_n`` of a history's blocks to choose from."""
    return blocks <= spec.top_n or not len(rows) or not len(block_keys)


def sample_sizes(max_length: int, heads: int) -> tuple[int, int]:
    """How many runs of how many events are sampled."""
    limit = max(1, MAX_SCORES // (heads * max_length))
    # The compression goes backward through the histories sampled: the fewer, the less it takes.
    together = min(64, limit)
    return min(SAMPLES, limit) // together, together


def _divergence(importance: Tensor, shares: Tensor, eligible: Tensor, counted: Tensor) -> Tensor:
    """Mean divergence of the softmax over importance, float32 [X, C, G, J], from the shares."""
    log_share = importance.masked_fill(~eligible, -math.inf).log_softmax(-1)
    # Blocks that are not eligible have no share; their -inf must not meet it.
    log_share = log_share.masked_fill(~eligible, 0.0)
    by_event = (shares.xlogy(shares) - shares * log_share).sum(-1).mean(-1)
    return (by_event * counted).sum() / counted.sum().clamp(min=1)


def _first_choosing(cu_seqlens: Tensor, spec: BlossomSpec) -> Tensor:
    """Packed row from which on the events of each history have a choice, int64 [B].

    Those before have at most ``top_n`` eligible blocks; the history's end where all have.
    """
    starts, lengths = cu_seqlens.long()[:-1], cu_seqlens.long().diff()
    if spec.causal:
        return starts + lengths.clamp(max=(spec.top_n + 1) * spec.block_size)
    blocks = lengths // spec.block_size
    # With one block more than are selected, all of them are eligible only from outside of them.
    outside = torch.where(blocks == spec.top_n + 1, blocks * spec.block_size, lengths)
    return starts + torch.where(blocks > spec.top_n + 1, 0, outside)


def _draw(cu_seqlens: Tensor, first: Tensor, rows: Tensor, runs: int, together: int) -> Tensor:
    """A sample of ``rows`` from ``first`` [B] of their histories on, int64 [runs, c].

    A run is c events of one history. A history is drawn as often as it has such rows, then its
    events are, all alike: every row is as likely as every other. Draws are stratified, so that each
    row is one about as often as it is expected to be. Nothing waits for the device. Where there is
    no such row, all are T.
    """
    # Of 32 bits, they cannot be rounded up to the next stratum.
    drawn = torch.rand(runs, together + 1, device=rows.device).double()
    # Where the rows of each history begin and end among all rows.
    low, high = torch.searchsorted(rows, torch.stack((first, cu_seqlens[1:].long())))
    counts = high - low
    ends = counts.cumsum(0)
    share = (torch.arange(runs, device=rows.device) + drawn[:, 0]) / runs
    history = torch.searchsorted(ends, (share * ends[-1]).long(), right=True)
    history = history.clamp(max=len(ends) - 1)
    share = (torch.arange(together, device=rows.device) + drawn[:, 1:]) / together
    index = low[history, None] + (share * counts[history, None]).long()
    sample = rows[index.clamp(max=len(rows) - 1)]
    return torch.where(ends[-1] > 0, sample, cu_seqlens[-1])


def _eligible(packing: Packing, rows: Tensor, number: Tensor, causal: bool) -> Tensor:
    """Which blocks ``number`` [J] each of ``rows`` [X, C] may select, bool [X, C, J]."""
    own = packing.block[rows][..., None]
    if causal:
        return number < own
    return (number < packing.num_blocks[rows][..., None]) & (number != own)


def _rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """Rows of [N, heads, d], float32 [*rows.shape, heads, d]; numbers beyond N give the last."""
    # Unlike that of indexing, the gradient of an embedding is summed in a fixed order.
    taken = embedding(rows.clamp(max=len(x) - 1), x.flatten(1))
    return taken.unflatten(-1, x.shape[1:]).float()
