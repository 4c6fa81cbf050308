"""Blossom attention as it is defined, in plain PyTorch: written to be read, quadratic, any type.

Every faster implementation is held to this one. It walks through the histories one by one and
builds, for each, the two masks of the definition.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from blossomrec.attention.packing import complete_blocks
from blossomrec.attention.spec import BlossomSpec, Inputs, Target


def attend(inputs: Inputs, spec: BlossomSpec, selected: Tensor | None) -> tuple[Tensor, Tensor]:
    """See :func:`blossomrec.attention.blossom_attention`, which checks the arguments."""
    q, k, v, block_keys, gates, cu_seqlens = inputs
    block_size, causal = spec.block_size, spec.causal
    ends = [0, *complete_blocks(cu_seqlens, block_size).cumsum(0).tolist()]
    bounds = cu_seqlens.tolist()
    outputs, choices = [q.new_zeros(0, *q.shape[1:])], []
    for history, (start, end) in enumerate(pairwise(bounds)):
        rows = slice(start, end)
        if selected is None:
            keys = block_keys[ends[history] : ends[history + 1]]
            chosen = select_blocks(q[rows], keys, spec)
        else:
            chosen = selected[rows]
        long_mask = long_term_mask(chosen, block_size, causal)
        short_mask = short_term_mask(end - start, spec, q.device)
        attended = q[rows], k[rows], v[rows], gates[rows]
        outputs.append(fused_attention(*attended, long_mask, short_mask, spec))
        choices.append(chosen)
    empty = torch.zeros(0, k.shape[1], spec.top_n, dtype=torch.int32, device=q.device)
    return torch.cat(outputs).to(q.dtype), torch.cat([empty, *choices])


def unsupported(target: Target) -> str:
    """What is not taken, as a sentence: nothing."""
    return ""


def select_blocks(q: Tensor, block_keys: Tensor, spec: BlossomSpec) -> Tensor:
    """The ``top_n`` most important eligible blocks of each event and key/value head.

    Args:
        q: [L, H, d], one history.
        block_keys: [L // block_size, G, d].

    Returns:
        int32 [L, G, top_n], rising block numbers, -1 last where fewer blocks are eligible.
    """
    length, heads, size = q.shape
    blocks, groups, _ = block_keys.shape
    block_size, top_n, causal = spec.block_size, spec.top_n, spec.causal
    exact = torch.promote_types(q.dtype, torch.float32)
    mean_q = q.to(exact).view(length, groups, heads // groups, size).mean(2)
    importance = torch.einsum("lgd,jgd->lgj", mean_q, block_keys.to(exact)) / math.sqrt(size)
    own = torch.arange(length, device=q.device)[:, None] // block_size
    numbers = torch.arange(blocks, device=q.device)[None]
    eligible = numbers < own if causal else numbers != own
    importance = importance.masked_fill(~eligible[:, None], -math.inf)
    # A stable sort keeps the lower block first among equal scores.
    order = importance.sort(dim=-1, descending=True, stable=True).indices[..., :top_n]
    kept = eligible[:, None].expand_as(importance).gather(-1, order)
    if spec.share < 1:
        # Where nothing is eligible there is no share: not a number, which is not below.
        shares = importance.softmax(-1).gather(-1, order)
        kept &= shares.cumsum(-1) - shares < spec.share
    order = torch.where(kept, order, blocks).sort(dim=-1).values
    chosen = torch.full((length, groups, top_n), -1, dtype=torch.int32, device=q.device)
    chosen[..., : order.shape[-1]] = torch.where(order < blocks, order, -1)
    return chosen


def long_term_mask(selected: Tensor, block_size: int, causal: bool) -> Tensor:
    """Which keys each event sees in its selected blocks and its own one, bool [G, L, L]."""
    length, groups, _ = selected.shape
    event = torch.arange(length, device=selected.device)
    key_block = event // block_size
    own = key_block[:, None] == key_block[None]
    if causal:
        own &= event[None] <= event[:, None]
    mask = own.expand(groups, length, length).clone()
    for choice in selected.unbind(-1):  # [L, G]
        mask |= choice.T[:, :, None] == key_block
    return mask


def short_term_mask(length: int, spec: BlossomSpec, device: torch.device) -> Tensor:
    """Which keys each event sees through the power-law pattern, bool [L, L]."""
    event, base = torch.arange(length, device=device), spec.power_base
    distance = event[:, None] - event[None]
    exponents = range(math.ceil(math.log(max(length, 2), base)) + 1)
    powers = torch.tensor([round(base**exponent) for exponent in exponents], device=device)
    mask = (distance.abs() < spec.window) | torch.isin(distance.abs(), powers)
    if spec.causal:
        return (mask | (event < spec.sinks)[None]) & (distance >= 0)
    return mask | (event >= length - spec.sinks)[None]


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    long_mask: Tensor,
    short_mask: Tensor,
    spec: BlossomSpec,
) -> Tensor:
    """Both paths of one history, [L, H, d], of which keys each sees, bool [G, L, L] and [L, L]."""
    if spec.is_union:
        bias = gates * short_mask[:, None]  # [L, H, L]
        return masked_attention(q, k, v, long_mask | short_mask, bias)
    long = masked_attention(q, k, v, long_mask)
    short = masked_attention(q, k, v, short_mask[None])
    return gates[..., :1] * long + gates[..., 1:] * short


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Softmax attention, scale 1/sqrt(d), of one history.

    q: [L, H, d]; k, v: [L, G, d]; mask: bool [G or 1, L, L]; bias: added to scaled scores,
    [L, H, L].
    """
    length, heads, size = q.shape
    groups = k.shape[1]
    exact = torch.promote_types(q.dtype, torch.float32)
    q, k, v = q.to(exact).view(length, groups, heads // groups, size), k.to(exact), v.to(exact)
    scores = torch.einsum("lgrd,sgd->grls", q, k) / math.sqrt(size)
    if bias is not None:
        bias = bias.to(exact).view(length, groups, heads // groups, length)
        scores = scores + bias.permute(1, 2, 0, 3)
    weights = scores.masked_fill(~mask[:, None], -math.inf).softmax(-1)
    return torch.einsum("grls,sgd->lgrd", weights, v).reshape(length, heads, size)
