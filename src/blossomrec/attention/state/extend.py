"""Blossom attention of new events over kept states: causal, without gradients, on any device.

The work for an event does not grow with its history, but for one score a complete block (and one
more distance each time the history doubles).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blossomrec.attention import pattern
from blossomrec.attention.rotary import rotate
from blossomrec.attention.spec import BlossomSpec
from blossomrec.attention.state.attention_state import (
    AttentionState,
    extend_states,
    joined,
    new_positions,
)

# New events attended together: bounds what is gathered at a time to a few MiB.
TILE_ROWS = {"cpu": 128, "cuda": 4_096}


@dataclass(frozen=True)
class _Run:
    """Consecutive new events of one user; ``start`` is the row of the first in the user's state."""

    state: AttentionState
    start: int
    count: int

    @property
    def first_block(self) -> int:
        return self.state.first // self.state.block_size


def extend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    counts: Sequence[int],
    states: Sequence[AttentionState],
    pool: Callable[[Tensor], Tensor],
    spec: BlossomSpec,
) -> tuple[Tensor, Tensor, list[AttentionState]]:
    """Put new events behind those of the states and attend from them.

    Args:
        q: [t, H, d] queries of the new events, user after user, not yet rotated.
        k, v: [t, G, d] their keys, not yet rotated, and values.
        gates: [t, H, 2] weights of the long-term and the short-term path.
        counts: new events of each user, t in all.
        states: of each user.
        pool: see :meth:`AttentionState.extend`.
        spec: the definition.

    Returns:
        [t, H, d] in the type of ``q``, the selected blocks, int32 [t, G, top_n], rising with -1
        last, and the states after the events.
    """
    with torch.autocast(q.device.type, enabled=False):
        place = new_positions(counts, states, q.device)
        # For a few events the number of operations is what counts: both are turned at once.
        heads = rotate(torch.cat((q, k), dim=1), place, spec.rotary_share)
        q, k = heads.split((q.shape[1], k.shape[1]), dim=1)
        extended = extend_states(k, v, counts, states, pool)
        return *attend_new(q, gates, extended, counts, spec), extended


def attend_new(
    q: Tensor,
    gates: Tensor,
    states: Sequence[AttentionState],
    counts: Sequence[int],
    spec: BlossomSpec,
) -> tuple[Tensor, Tensor]:
    """Output of the last events of each history, as ``blossom_attention`` gives it for the whole.

    Args:
        q: [t, H, d] queries of the new events, rotated, user after user.
        gates: [t, H, 2] weights of the long-term and the short-term path.
        states: of each user, with the new events already in them.
        counts: new events of each user, t in all.
        spec: the definition.

    Returns:
        [t, H, d] in the type of ``q``, and the selected blocks, int32 [t, G, top_n], rising with
        -1 last.
    """
    heads, size = q.shape[1:]
    groups = states[0].events.buffer.shape[1] if states else heads
    exact = torch.promote_types(q.dtype, torch.float32)
    grouped = q.to(exact).unflatten(1, (groups, -1)) / math.sqrt(size)  # [t, G, R, d]
    shares = gates.to(exact).unflatten(1, (groups, -1))  # [t, G, R, 2]
    outputs, choices, start = [], [], 0
    for runs, stop in _tiles(states, counts, TILE_ROWS[q.device.type]):
        rows = slice(start, stop)
        out, chosen = _attend_tile(grouped[rows], shares[rows], runs, spec)
        outputs.append(out.flatten(1, 2).to(q.dtype))
        choices.append(chosen)
        start = stop
    if not outputs:
        return q, torch.empty(0, groups, spec.top_n, dtype=torch.int32, device=q.device)
    return joined(outputs), joined(choices)


def _tiles(
    states: Sequence[AttentionState], counts: Sequence[int], step: int
) -> Iterator[tuple[list[_Run], int]]:
    """Runs of at most ``step`` events together, and the number of events up to their end."""
    runs, room, done = [], step, 0
    for state, count in zip(states, counts, strict=True):
        while count:
            taken = min(count, room)
            runs.append(_Run(state, state.held - count, taken))
            count, room, done = count - taken, room - taken, done + taken
            if not room:
                yield runs, done
                runs, room = [], step
    if runs:
        yield runs, done


def _attend_tile(
    q: Tensor, gates: Tensor, runs: list[_Run], spec: BlossomSpec
) -> tuple[Tensor, Tensor]:
    """q [C, G, R, d], already scaled, to [C, G, R, d] and int32 [C, G, n].

    Rows, blocks and positions are counted from the oldest event that the user's state holds.
    """
    row = joined([torch.arange(r.start, r.start + r.count, device=q.device) for r in runs])
    block_size = spec.block_size
    own = (row // block_size)[:, None, None]
    blocks = _select(q.mean(2), own, runs, spec.top_n)
    far = _block_rows(torch.cat((own.expand(-1, q.shape[1], -1), blocks), -1), block_size)
    near = _near_rows(row, runs, spec.window, spec.sinks)[:, None].expand(-1, q.shape[1], -1)
    places = torch.cat((far, near), dim=-1)  # [C, G, M]
    last = row[:, None, None]
    seen = (places >= 0) & (places <= last)
    gathered = _gather(torch.where(seen, places, last), runs)  # [C, G, M, 2d]
    k, v = gathered.to(q.dtype).split(q.shape[-1], dim=-1)
    scores = (q @ k.mT).masked_fill_(~seen[:, :, None], -math.inf)
    paths = scores.split((far.shape[-1], near.shape[-1]), dim=-1)
    shares = gates.split(1, dim=-1)
    # Both paths are weighted sums over the same values: one product serves them.
    weights = torch.cat(
        [path.softmax(-1) * share for path, share in zip(paths, shares, strict=True)], -1
    )
    chosen = torch.where(blocks < own, blocks, -1)
    if any(r.first_block for r in runs):
        gone = _each([r.first_block for r in runs], runs, q.device)[:, None, None]
        chosen = torch.where(chosen < 0, -1, chosen + gone)
    return weights @ v, chosen.to(torch.int32)


def _select(mean_q: Tensor, own: Tensor, runs: list[_Run], top_n: int) -> Tensor:
    """The most important blocks before the own one, rising; a number past ``own`` is none.

    mean_q: [C, G, d], own: [C, 1, 1] -> [C, G, n].
    """
    counts = [r.count for r in runs]
    chosen = [
        _select_run(queries, blocks, run, top_n)
        for queries, blocks, run in zip(mean_q.split(counts), own.split(counts), runs, strict=True)
    ]
    return joined(chosen)


def _select_run(mean_q: Tensor, own: Tensor, run: _Run, top_n: int) -> Tensor:
    block_size = run.state.block_size
    first, last = run.start // block_size, (run.start + run.count - 1) // block_size
    if last <= top_n:
        every = torch.arange(top_n, device=own.device).expand(*mean_q.shape[:2], -1)
        return torch.where(every < own, every, own + 1)
    keys = run.state.block_keys[:last].float()
    importance = (mean_q.float().transpose(0, 1) @ keys.permute(1, 2, 0)).transpose(0, 1)
    if first == last:
        return _top(importance, top_n).sort(-1).values
    later = torch.arange(last, device=own.device) >= own
    best = _top(importance.masked_fill(later, -math.inf), top_n)
    return torch.where(best < own, best, own + 1).sort(-1).values


def _top(importance: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest of more numbers; among equals the lower index."""
    best = importance.topk(count + 1, dim=-1)
    # Equal numbers matter only where one of them is left out.
    if bool((best.values[..., -2] == best.values[..., -1]).any()):
        order = importance.sort(dim=-1, descending=True, stable=True)
        return order.indices[..., :count]
    return best.indices[..., :count]


def _block_rows(blocks: Tensor, block_size: int) -> Tensor:
    """Rows of the events of blocks, [C, G, n + 1] to [C, G, (n + 1) * S]."""
    place = torch.arange(block_size, device=blocks.device)
    return (blocks[..., None] * block_size + place).flatten(2)


def _near_rows(row: Tensor, runs: list[_Run], window: int, sinks: int) -> Tensor:
    """Rows at the pattern's distances, then the sinks, [C, M]; negative where there is none."""
    longest = max(r.start + r.count for r in runs)
    distances = torch.tensor(pattern.distances(window, longest), device=row.device)
    near = row[:, None] - distances
    if not sinks:
        return near
    first = _each([r.state.first for r in runs], runs, row.device)
    sink = torch.arange(sinks, device=row.device) - first[:, None]
    distance = row[:, None] - sink
    again = pattern.is_visible(distance.clamp(min=0), window)
    return torch.cat((near, torch.where(again, -1, sink)), dim=-1)


def _gather(places: Tensor, runs: list[_Run]) -> Tensor:
    """Keys and values at rows [C, G, M] of each user's state, [C, G, M, 2d]."""
    groups = places.shape[1]
    flat = places * groups + torch.arange(groups, device=places.device)[:, None]
    gathered = []
    for run, rows in zip(runs, flat.split([r.count for r in runs]), strict=True):
        kept = run.state.events.buffer.flatten(0, 1)
        gathered.append(kept.index_select(0, rows.flatten()).view(*rows.shape, -1))
    return joined(gathered)


def _each(numbers: list[int], runs: list[_Run], device: torch.device) -> Tensor:
    """A number of every run, repeated for its events, [C]."""
    repeated = [number for number, r in zip(numbers, runs, strict=True) for _ in range(r.count)]
    return torch.tensor(repeated, device=device)
