"""The next event of many users over their pages, in plain PyTorch on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blossomrec.attention import pattern
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.spec import BlossomSpec
from blossomrec.attention.state.paged.pages import NOBODY, PagedLayer, Step

# Block keys that are gathered at a time.
TILE_BLOCKS = 65_536


def append(k: Tensor, v: Tensor, layer: PagedLayer, step: Step) -> None:
    """Write keys and values [B, G, d] of the events where the step says."""
    user, position, first, page = step.rows.long()
    size = layer.block_size
    step.table[user, position // size - first] = step.page
    layer.pages[page, :, position % size] = torch.cat((k, v), -1).to(layer.pages.dtype)


def close_blocks(
    layer: PagedLayer, step: Step, compression: MeanCompression | MLPCompression
) -> None:
    """Write the keys of the blocks that the events of ``step`` have completed."""
    if not len(step.closing):
        return
    closing = step.closing.long()
    block_keys = compression.pool(_windows(layer, step, closing)).to(layer.block_keys.dtype)
    complete = step.position[closing] % layer.block_size == layer.block_size - 1
    # A step of fixed size computes a key for every event.
    target = torch.where(complete, step.page[closing], NOBODY)
    layer.block_keys.index_copy_(0, target.long(), block_keys)


def _windows(layer: PagedLayer, step: Step, closing: Tensor) -> Tensor:
    """Keys that the block keys of some events' blocks are made of, [C, G, reach, d]."""
    user, position, first, _ = step.rows.index_select(1, closing).long()
    number = position // layer.block_size
    back = torch.arange(1 - layer.reach // layer.block_size, 1, device=number.device)
    number = number[:, None] + back
    # What is held reaches as far as the open window does: only before position 0 there is nothing.
    column = (number - first[:, None]).clamp(min=0)
    pages = layer.pages[step.table[user[:, None], column].long()]  # [C, blocks, G, S, 2d]
    keys = pages[..., : layer.block_keys.shape[-1]]
    keys = torch.where((number >= 0)[:, :, None, None, None], keys, 0)
    return keys.transpose(1, 2).flatten(2, 3)


def attend(
    q: Tensor,
    gates: Tensor,
    layer: PagedLayer,
    step: Step,
    spec: BlossomSpec,
) -> tuple[Tensor, Tensor]:
    """Both paths of the events appended last, see ``Parts.attend_paged``.

    Rows, blocks and positions are counted from the oldest event that a user holds.
    """
    groups, block_size = layer.pages.shape[1:3]
    exact = torch.promote_types(q.dtype, torch.float32)
    grouped = q.to(exact).unflatten(1, (groups, -1)) / math.sqrt(q.shape[-1])  # [B, G, R, d]
    _, position, first, _ = step.rows.long()
    row = position - first * block_size
    own = (row // block_size)[:, None, None]
    blocks = _select(grouped.mean(2), layer, step, spec.top_n)
    inside = torch.arange(block_size, device=q.device)
    far = torch.cat((own.expand(-1, groups, -1), blocks), -1)[..., None] * block_size + inside
    near = _near(row, first * block_size, step, block_size, spec.window, spec.sinks)
    far, near = far.flatten(2), near[:, None].expand(-1, groups, -1)
    places = torch.cat((far, near), -1)  # [B, G, M]
    last = row[:, None, None]
    seen = (places >= 0) & (places <= last)
    k, v = _gather(torch.where(seen, places, last), layer, step).to(exact).chunk(2, -1)
    scores = (grouped @ k.mT).masked_fill_(~seen[:, :, None], -math.inf)
    shares = gates.to(exact).unflatten(1, (groups, -1)).split(1, -1)  # [B, G, R, 1] each
    paths = scores.split((far.shape[-1], near.shape[-1]), -1)
    weights = torch.cat(
        [path.softmax(-1) * share for path, share in zip(paths, shares, strict=True)], -1
    )
    chosen = torch.where(blocks < own, blocks + first[:, None, None], -1)
    return (weights @ v).flatten(1, 2).to(q.dtype), chosen.to(torch.int32)


def _select(mean_q: Tensor, layer: PagedLayer, step: Step, top_n: int) -> Tensor:
    """The most important blocks before the own one, rising; a number past it is none, [B, G, n].

    Users of similar length go together, for their blocks are padded to the longest of them.
    """
    chosen = mean_q.new_empty(*mean_q.shape[:2], top_n, dtype=torch.int64)
    order = step.columns.argsort()
    while len(order):
        most = max(int(step.columns[order[-1]]), 1)
        rows = order[-max(1, TILE_BLOCKS // most) :]
        order = order[: len(order) - len(rows)]
        rows, own = rows.to(mean_q.device), step.columns[rows].to(mean_q.device)[:, None, None]
        pages = step.table[step.user[rows].long(), :most]
        keys = layer.block_keys[pages.long()].to(mean_q.dtype)  # [b, C, G, d]
        importance = torch.einsum("bgd,bcgd->bgc", mean_q[rows], keys)
        number = torch.arange(most, device=mean_q.device)
        importance = importance.masked_fill(number >= own, -math.inf)
        best = _top(importance, top_n)
        chosen[rows] = torch.where(best < own, best, own + 1).sort(-1).values
    return chosen


def _top(importance: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest numbers; among equals the lower index."""
    missing = max(0, count + 1 - importance.shape[-1])
    importance = torch.nn.functional.pad(importance, (0, missing), value=-math.inf)
    best = importance.topk(count + 1, dim=-1)
    worst, left = best.values[..., -2], best.values[..., -1]
    # Equal numbers matter only where one of them is left out.
    if bool(((worst == left) & (left > -math.inf)).any()):
        order = importance.sort(dim=-1, descending=True, stable=True)
        return order.indices[..., :count]
    return best.indices[..., :count]


def _near(
    row: Tensor, first: Tensor, step: Step, block_size: int, window: int, sinks: int
) -> Tensor:
    """Rows at the pattern's distances, then the sinks, [B, M]; negative where there is none."""
    longest = step.table.shape[1] * block_size
    distances = torch.tensor(pattern.distances(window, longest), device=row.device)
    near = row[:, None] - distances
    if not sinks:
        return near
    sink = torch.arange(sinks, device=row.device) - first[:, None]
    again = pattern.is_visible((row[:, None] - sink).clamp(min=0), window)
    return torch.cat((near, torch.where(again, -1, sink)), -1)


def _gather(places: Tensor, layer: PagedLayer, step: Step) -> Tensor:
    """Keys and values at rows [B, G, M] of each user, [B, G, M, 2d]."""
    _, groups, block_size, _ = layer.pages.shape
    page = step.table[step.user.long()[:, None, None], places // block_size].long()
    group = torch.arange(groups, device=places.device)[:, None]
    rows = (page * groups + group) * block_size + places % block_size
    return layer.pages.flatten(0, 2).index_select(0, rows.flatten()).unflatten(0, places.shape)
