"""New events over pages, in plain PyTorch on any device: causal, without gradients.

The work for an event does not grow with its history, but for one score a complete block (and one
more distance each time the history doubles).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.rotary import rotate, rotate_by
from blossomrec.attention.spec import BlossomSpec
from blossomrec.attention.state.pages import NOBODY, PagedLayer, Step, rows_at

# New events attended together: bounds what is gathered at a time to a few MiB.
TILE_ROWS = {"cpu": 128, "cuda": 4_096}
# Block keys that are gathered at a time.
TILE_BLOCKS = 65_536


def rotated(
    q: Tensor, k: Tensor, step: Step, share: float, angles: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Queries [E, H, d] and keys [E, G, d] of the events, rotated by their positions.

    angles: [E, 2, pairs], cosine and sine to rotate by instead.
    """
    # For a few events the number of operations is what counts: both are rotated at once.
    joint = torch.cat((q, k), 1)
    joint = rotate(joint, step.position, share) if angles is None else rotate_by(joint, angles)
    q, k = joint.split((q.shape[1], k.shape[1]), dim=1)
    return q, k


def append(k: Tensor, v: Tensor, layer: PagedLayer, step: Step) -> None:
    """Write keys and values [E, G, d] of the events where the step says."""
    step.enter_pages()
    page, index = step.page.long(), step.position.long() % layer.layout.block_size
    layer.pages[page, :, index] = torch.cat((k, v), -1).to(layer.pages.dtype)


def close_blocks(
    layer: PagedLayer, step: Step, compression: MeanCompression | MLPCompression
) -> None:
    """Write the keys of the blocks that the events of ``step`` have completed."""
    if not step.closes:
        return
    closing = step.closing.long()
    block_keys = compression.pool(_windows(layer, step, closing)).to(layer.block_keys.dtype)
    size = layer.layout.block_size
    # A step of fixed size computes a key for every event.
    complete = step.position[closing] % size == size - 1
    target = torch.where(complete, step.page[closing], NOBODY)
    layer.block_keys.index_copy_(0, target.long(), block_keys)


def _windows(layer: PagedLayer, step: Step, closing: Tensor) -> Tensor:
    """Keys that the block keys of some events' blocks are made of, [C, G, reach, d]."""
    size, reach, _, dim, *_ = layer.layout
    user, position, first, _ = step.rows.index_select(1, closing).long()
    number = (position // size)[:, None] + torch.arange(1 - reach // size, 1, device=user.device)
    # What is held reaches as far as the open window does: only before position 0 there is nothing.
    column = (number - first[:, None]).clamp(min=0)
    pages = layer.pages[step.table[user[:, None], column].long()]  # [C, blocks, G, S, 2d]
    keys = torch.where((number >= 0)[:, :, None, None, None], pages[..., :dim], 0)
    return keys.transpose(1, 2).flatten(2, 3)


def attend(
    q: Tensor, gates: Tensor, layer: PagedLayer, step: Step, spec: BlossomSpec
) -> tuple[Tensor, Tensor]:
    """Output of the events of ``step``, as ``blossom_attention`` gives it for whole histories.

    Args:
        q: [E, H, d] rotated queries.
        gates: [E, H, 2] weights of the long-term and the short-term path; of a union the bias,
            [E, H, 1].
        layer, step: with the events in them.
        spec: the definition.

    Returns:
        [E, H, d] in the type of ``q``, and the selected blocks, int32 [E, G, n], numbered from the
        start of the whole history, rising with -1 last.
    """
    groups, tile = layer.layout.heads, TILE_ROWS.get(q.device.type, 4_096)
    exact = torch.promote_types(q.dtype, torch.float32)
    grouped = q.to(exact).unflatten(1, (groups, -1)) / math.sqrt(q.shape[-1])  # [E, G, R, d]
    shares = gates.to(exact).unflatten(1, (groups, -1))  # [E, G, R, 2 or 1]
    outputs, choices = [], []
    for start in range(0, len(q), tile):
        rows = slice(start, start + tile)
        out, chosen = _attend_tile(grouped[rows], shares[rows], rows, layer, step, spec)
        outputs.append(out.flatten(1, 2).to(q.dtype))
        choices.append(chosen)
    if not outputs:
        return q, torch.empty(0, groups, spec.top_n, dtype=torch.int32, device=q.device)
    return torch.cat(outputs), torch.cat(choices)


def _attend_tile(
    q: Tensor, gates: Tensor, rows: slice, layer: PagedLayer, step: Step, spec: BlossomSpec
) -> tuple[Tensor, Tensor]:
    """q [C, G, R, d], scaled, of events ``rows`` to [C, G, R, d] and int32 [C, G, n].

    Places, blocks and positions are counted from the oldest event that a user holds.
    """
    groups, size = q.shape[1], layer.layout.block_size
    user, position, first, _ = step.rows[:, rows].long()
    place = position - first * size
    own = (place // size)[:, None, None]
    blocks = _select(q.mean(2), own, layer, step, rows, spec)
    inside = torch.arange(size, device=q.device)
    far = torch.cat((own.expand(-1, groups, -1), blocks), -1)[..., None] * size + inside
    longest = (int(step.columns[rows].max()) + 1) * size
    near = _near(place, first * size, longest, spec)
    far, near = far.flatten(2), near[:, None].expand(-1, groups, -1)
    places = torch.cat((far, near), -1)  # [C, G, M]
    last = place[:, None, None]
    seen = (places >= 0) & (places <= last)
    if spec.is_union:
        # Each key once: as a near one.
        hidden = spec.pattern.is_visible((last - far).clamp(min=0))
        hidden |= far + (first * size)[:, None, None] < spec.sinks
        seen[..., : far.shape[-1]] &= ~hidden
    gathered = _gather(torch.where(seen, places, last), user, layer, step)
    k, v = gathered.to(q.dtype).chunk(2, -1)
    scores = (q @ k.mT).masked_fill_(~seen[:, :, None], -math.inf)
    # Both paths are weighted sums over the same values: one product serves them.
    if spec.is_union:
        scores[..., far.shape[-1] :] += gates
        weights = scores.softmax(-1)
    else:
        paths = scores.split((far.shape[-1], near.shape[-1]), -1)
        shares = zip(paths, gates.split(1, -1), strict=True)
        weights = torch.cat([path.softmax(-1) * share for path, share in shares], -1)
    chosen = torch.where(blocks < own, blocks + first[:, None, None], -1)
    return weights @ v, chosen.to(torch.int32)


def _select(
    mean_q: Tensor, own: Tensor, layer: PagedLayer, step: Step, rows: slice, spec: BlossomSpec
) -> Tensor:
    """The most important blocks before the own one, rising; a number past it is none.

    mean_q: [C, G, d], own: [C, 1, 1] -> [C, G, n].
    """
    chosen = mean_q.new_empty(*mean_q.shape[:2], spec.top_n, dtype=torch.int64)
    users, columns = step.users[rows], step.columns[rows]
    for events in _alike(users, columns):
        most, least = int(columns[events].max()), int(columns[events].min())
        keys = _block_keys(users[events[:, 0]], most, layer, step).to(mean_q.dtype)
        events = torch.from_numpy(events).to(mean_q.device)
        queries, block = mean_q[events], own[events]  # [U, c, G, d] and [U, c, 1, 1]
        importance = (queries.transpose(1, 2) @ keys.permute(0, 2, 3, 1)).transpose(1, 2)
        if least < most:
            later = torch.arange(most, device=mean_q.device) >= block
            importance = importance.masked_fill(later, -math.inf)
        best = _top(importance, spec.top_n)
        taken = best < block
        if spec.share < 1:
            taken &= _reaches(importance, best, spec.share)
        chosen[events] = torch.where(taken, best, block + 1).sort(-1).values
    return chosen


def _alike(users: np.ndarray, columns: np.ndarray) -> Iterator[np.ndarray]:
    """Events, int64 [U, c], of users with as many new ones, of similar length; all of them once.

    The blocks of users who go together are padded to the longest of them.
    """
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    counts = np.diff(starts, append=len(users))
    for count in np.unique(counts):
        first = starts[counts == count]
        if len(first) > 1:
            first = first[columns[first].argsort(kind="stable")]
        while len(first):
            most = max(int(columns[first[-1]]), 1)
            some = first[-max(1, TILE_BLOCKS // most) :]
            first = first[: len(first) - len(some)]
            yield (np.sort(some)[:, None] + np.arange(count)).astype(np.int64)


def _block_keys(users: np.ndarray, most: int, layer: PagedLayer, step: Step) -> Tensor:
    """Of each user's first ``most`` blocks held, [U, most, G, d]."""
    if len(users) == 1:
        return rows_at(layer.block_keys, step.known[users[0], :most])[None]
    user = torch.from_numpy(users).to(layer.block_keys.device)
    return layer.block_keys[step.table[user, :most].long()]


def _top(importance: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest numbers; among equals the lower index."""
    missing = count + 1 - importance.shape[-1]
    if missing > 0:
        importance = torch.nn.functional.pad(importance, (0, missing), value=-math.inf)
    best = importance.topk(count + 1, dim=-1)
    worst, left = best.values[..., -2], best.values[..., -1]
    # Equal numbers matter only where one of them is left out.
    if bool(((worst == left) & (left > -math.inf)).any()):
        order = importance.sort(dim=-1, descending=True, stable=True)
        return order.indices[..., :count]
    return best.indices[..., :count]


def _reaches(importance: Tensor, best: Tensor, share: float) -> Tensor:
    """Which of the best blocks, the most important first, are taken until the share is reached.

    best: [..., n], places in ``importance`` [..., J], or behind its end where there are fewer.
    """
    importance = torch.nn.functional.pad(importance, (0, best.shape[-1] + 1), value=-math.inf)
    shares = importance.softmax(-1).gather(-1, best)
    return shares.cumsum(-1) - shares < share


def _near(place: Tensor, first: Tensor, longest: int, spec: BlossomSpec) -> Tensor:
    """Places at the pattern's distances, then the sinks, [C, M]; negative where there is none."""
    distances = torch.tensor(spec.pattern.distances(longest), device=place.device)
    near = place[:, None] - distances
    if not spec.sinks:
        return near
    sink = torch.arange(spec.sinks, device=place.device) - first[:, None]
    again = spec.pattern.is_visible((place[:, None] - sink).clamp(min=0))
    return torch.cat((near, torch.where(again, -1, sink)), -1)


def _gather(places: Tensor, user: Tensor, layer: PagedLayer, step: Step) -> Tensor:
    """Keys and values at places [C, G, M] of each event's user, [C, G, M, 2d]."""
    size, _, groups, *_ = layer.layout
    page = step.table[user[:, None, None], places // size].long()
    group = torch.arange(groups, device=places.device)[:, None]
    rows = (page * groups + group) * size + places % size
    return layer.pages.flatten(0, 2).index_select(0, rows.flatten()).unflatten(0, places.shape)
