"""What teaches the selector: the importance of blocks follows the attention they would get.

Choosing blocks is a discrete step, so no gradient of the recommendation loss reaches the block
keys. Instead, for a sample of events, the softmax over the importance of some blocks (the selected
ones and as many random ones, so that a block not yet selected can be found) is drawn to the share
of attention that the heads give those blocks. Queries and keys are detached: only the compression
learns, and what the model attends to is not bent towards what is easy to select.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding

from blossomrec.attention.packing import Packing

# One event in SAMPLE_EVERY is a lesson: block keys are shared by all, so a sample teaches enough.
SAMPLE_EVERY = 8


def selector_loss(
    q: Tensor,
    k: Tensor,
    block_keys: Tensor,
    selected: Tensor,
    cu_seqlens: Tensor,
    *,
    block_size: int,
    causal: bool,
) -> Tensor:
    """Kullback-Leibler divergence of the softmax over importance from the mass of attention.

    Args:
        q: [T, H, d] and k: [T, G, d], rotary applied; no gradient flows to them.
        block_keys: [N, G, d]; the gradient flows here.
        selected: int32 [T, G, n].
        cu_seqlens: int32 [B+1].

    Returns:
        Scalar, in nats, mean over the sampled events and key/value heads; zero, still connected to
        ``block_keys``, where no event has two blocks to choose from.
    """
    q, k = q.detach(), k.detach()
    packing = Packing.of(cu_seqlens, len(q), block_size)
    others = packing.block if causal else packing.num_blocks - 1
    able = torch.nonzero(others >= 2).flatten()
    if not len(able):
        return block_keys.sum() * 0.0
    count = max(1, len(able) // SAMPLE_EVERY)
    rows = able[torch.randint(len(able), (count,), device=q.device)]
    blocks, valid = _candidates(packing, selected, rows, causal)
    with torch.autocast(q.device.type, enabled=False):
        mass = attention_mass(q, k, packing, rows, blocks, valid)
        importance = _importance(q[rows], block_keys, packing.first_block[rows], blocks)
    log_share = importance.masked_fill(~valid, -math.inf).log_softmax(-1)
    # Places that hold no block have no mass; their -inf must not meet it.
    divergence = mass * (mass.clamp(min=1e-20).log() - log_share.masked_fill(~valid, 0.0))
    return divergence.sum(-1).mean()


def _candidates(
    packing: Packing, selected: Tensor, rows: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """Selected and as many random eligible blocks, each once: numbers, validity, [C, G, 2n]."""
    chosen = selected[rows].long()
    own, complete = packing.block[rows, None, None], packing.num_blocks[rows, None, None]
    eligible = own if causal else complete
    drawn = (torch.rand(chosen.shape, device=chosen.device) * eligible).long()
    blocks = torch.cat((chosen, drawn), dim=-1)
    repeated = (blocks[..., :, None] == blocks[..., None, :]).tril(-1).any(-1)
    return blocks.clamp(min=0), (blocks >= 0) & (blocks != own) & ~repeated


def attention_mass(
    q: Tensor, k: Tensor, packing: Packing, rows: Tensor, blocks: Tensor, valid: Tensor
) -> Tensor:
    """Share of attention that complete blocks get among each other, mean over a group's heads.

    Args:
        q: [T, H, d]; k: [T, G, d].
        rows: [C] packed rows of the queries.
        blocks, valid: [C, G, M] block numbers inside the row's history, and which of them count.

    Returns:
        [C, G, M] float32, summing to one over the valid places.
    """
    groups, size = k.shape[1:]
    place = torch.arange(packing.block_size, device=k.device)
    events = packing.start[rows, None, None, None] + blocks[..., None] * packing.block_size + place
    heads = torch.arange(groups, device=k.device)[:, None, None]
    # An invalid place may point behind the history's last block.
    keys = k[events.clamp(max=len(k) - 1), heads].flatten(2, 3)  # [C, G, M * S, d]
    queries = q[rows].unflatten(1, (groups, -1))  # [C, G, R, d]
    scores = (queries.float() @ keys.float().mT / math.sqrt(size)).unflatten(
        -1, (*blocks.shape[-1:], -1)
    )
    by_block = scores.logsumexp(-1).masked_fill(~valid[:, :, None], -math.inf)
    return by_block.softmax(-1).mean(2)


def _importance(q: Tensor, block_keys: Tensor, first: Tensor, blocks: Tensor) -> Tensor:
    """Importance of the named blocks for each query, float32 [C, G, M]."""
    groups, size = block_keys.shape[1:]
    heads = torch.arange(groups, device=q.device)[:, None]
    places = (first[:, None, None] + blocks).clamp(max=len(block_keys) - 1)
    # Unlike that of indexing, the gradient of an embedding is summed in a fixed order.
    keys = embedding(places * groups + heads, block_keys.flatten(0, 1)).float()
    mean_q = q.float().unflatten(1, (groups, -1)).mean(2)
    return (keys @ mean_q[..., None]).squeeze(-1) / math.sqrt(size)
