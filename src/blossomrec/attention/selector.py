"""What teaches the selector: the importance of blocks follows the attention they would get.

Choosing blocks is a discrete step, so no gradient of the recommendation loss reaches the importance
by which they are chosen. Instead, for a sample of events, the softmax over the importance of *all*
eligible blocks is drawn to the share of attention that the heads would give those blocks. The
shares are a fixed target. The gradient reaches the compression, and through the importance also the
queries and keys: a block has one key to be found by, and only a model that is told so makes its
queries and keys fit for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from blossomrec.attention.compress import keys_of_blocks
from blossomrec.attention.memo import per_batch
from blossomrec.attention.packing import Packing

# Events of a batch that are lessons. Each looks at its whole history once, so their number must not
# grow with the batch: the cost of a lesson is then linear in the number of events.
LESSONS = 512
# Lessons taken together: bounds the scores held at a time.
TILE_LESSONS = 64


def selector_loss(
    q: Tensor,
    k: Tensor,
    block_keys: Tensor,
    cu_seqlens: Tensor,
    rows: Tensor,
    *,
    block_size: int,
    causal: bool,
) -> Tensor:
    """Kullback-Leibler divergence of the softmax over importance from the mass of attention.

    Args:
        q: [T, H, d], rotary applied.
        k: [T, G, d], rotary applied; only the target is made of it.
        block_keys: [N or more, G, d] keys of all complete blocks; their gradient is the way to the
            keys.
        cu_seqlens: int32 [B+1].
        rows: int64 [C], rising: packed rows of the events from which lessons may be drawn.

    Returns:
        Scalar, in nats, mean over the drawn events and key/value heads; zero, still connected to
        ``block_keys``, where no event has two blocks to choose from.
    """
    lessons = Lessons.of(cu_seqlens, len(q), rows, block_size, causal)
    if not lessons.count:
        return block_keys.sum() * 0.0
    packing = Packing.of(cu_seqlens, len(q), block_size)
    drawn = lessons.draw()
    total = q.new_zeros((), dtype=torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        blocks = keys_of_blocks(k.detach(), cu_seqlens, block_size)
        queries = q.index_select(0, drawn).unflatten(1, (k.shape[1], -1)).float()
        for places, first, last in lessons.tiles():
            eligible = _eligible(packing, drawn[places], first, last, causal)[:, None]
            mass = attention_mass(queries[places].detach(), blocks[first:last], eligible)
            mean_q = queries[places].mean(2) / math.sqrt(q.shape[-1])
            importance = torch.einsum("cgd,jgd->cgj", mean_q, block_keys[first:last].float())
            log_share = importance.masked_fill(~eligible, -math.inf).log_softmax(-1)
            # Blocks that are not eligible have no mass; their -inf must not meet it.
            divergence = mass.xlogy(mass) - mass * log_share.masked_fill(~eligible, 0.0)
            total = total + divergence.sum()
    return total / (lessons.count * k.shape[1])


def attention_mass(q: Tensor, blocks: Tensor, eligible: Tensor) -> Tensor:
    """Share of attention that blocks get among each other, mean over a group's heads.

    Args:
        q: [C, G, R, d] queries.
        blocks: [J, S, G, d] keys of complete blocks.
        eligible: bool [C, 1 or G, J], at least one in each row.

    Returns:
        [C, G, J] float32, summing to one over the eligible blocks.
    """
    scores = torch.einsum("cgrd,jsgd->cgrjs", q.float(), blocks.float()) / math.sqrt(q.shape[-1])
    by_block = scores.logsumexp(-1).masked_fill(~eligible[:, :, None], -math.inf)
    return by_block.softmax(-1).mean(2)


def _eligible(packing: Packing, rows: Tensor, first: int, last: int, causal: bool) -> Tensor:
    """Whether each row may select each of the block keys ``first`` .. ``last - 1``, bool [C, J]."""
    number = torch.arange(first, last, device=rows.device) - packing.first_block[rows, None]
    own = packing.block[rows, None]
    if causal:
        return (number >= 0) & (number < own)
    return (number >= 0) & (number < packing.num_blocks[rows, None]) & (number != own)


@dataclass(frozen=True)
class Lessons:
    """Which events of a batch may be drawn as lessons.

    Those of the given rows with at least two eligible blocks, cut into ``count`` strips of about
    equal size; from each strip one event is drawn. So it is known before drawing which block keys a
    run of lessons can reach.

    Attributes:
        able: int64 [A], packed rows of these events.
        edges: int64 [count + 1], where each strip starts in ``able``.
        reach: for each tile of lessons, the first and last + 1 of the block keys in reach.
    """

    able: Tensor
    edges: Tensor
    reach: list[tuple[int, int]]

    @staticmethod
    @per_batch
    def of(cu_seqlens: Tensor, total: int, rows: Tensor, block_size: int, causal: bool) -> Lessons:
        packing = Packing.of(cu_seqlens, total, block_size)
        others = packing.block if causal else packing.num_blocks - 1
        able = rows[others[rows] >= 2]
        count = min(LESSONS, len(able))
        edges = torch.arange(count + 1, device=able.device) * len(able) // max(count, 1)
        starts = able[edges[:-1:TILE_LESSONS]]
        ends = able[torch.cat((edges[TILE_LESSONS:-1:TILE_LESSONS], edges[-1:]))[: len(starts)] - 1]
        reach = packing.first_block[ends] + (packing.block if causal else packing.num_blocks)[ends]
        bounds = torch.stack((packing.first_block[starts], reach), 1).tolist()
        return Lessons(able, edges, [(first, last) for first, last in bounds])

    @property
    def count(self) -> int:
        """Number of lessons."""
        return len(self.edges) - 1

    def draw(self) -> Tensor:
        """Packed rows of the lessons, int64 [count], rising."""
        sizes = self.edges.diff()
        drawn = torch.rand(self.count, device=self.able.device) * sizes
        # Rounding in float32 may reach the strip's end.
        return self.able[self.edges[:-1] + torch.minimum(drawn.long(), sizes - 1)]

    def tiles(self) -> Iterator[tuple[slice, int, int]]:
        """Slices of the lessons, each with the run of block keys that they can reach."""
        for number, (first, last) in enumerate(self.reach):
            start = number * TILE_LESSONS
            yield slice(start, min(start + TILE_LESSONS, self.count)), first, last
