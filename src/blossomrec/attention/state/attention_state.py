"""What a layer keeps of one user's history, so that new events need not run the old ones again.

A state is a value: extending or trimming one gives another and leaves the first as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

NUMBERS = ("block_size", "reach", "first")
TENSORS = ("keys", "values", "block_keys")

# Two threads that extend the same state must not both take the free rows behind it.
_claiming = threading.Lock()


class GrowingRows:
    """Rows of a tensor that are only ever added to, with room for more behind them.

    States that grew from each other share the rows: each knows how many of them are its own, and
    no row that belongs to a state is written again.

    Attributes:
        buffer: [capacity, ...].
        filled: rows that belong to some state.
    """

    def __init__(self, buffer: Tensor, filled: int):
        self.buffer, self.filled = buffer, filled

    def claim(self, used: int, count: int) -> GrowingRows:
        """Rows with room for ``count`` more behind the first ``used``; the caller writes them.

        These rows themselves, unless that room is taken or too small. The cost of a row is constant
        on average: a full buffer grows by half.
        """
        end = used + count
        with _claiming:
            free = self.filled == used and end <= len(self.buffer)
            if free:
                self.filled = end
        return self if free else self._copied(used, end)

    def _copied(self, used: int, end: int) -> GrowingRows:
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            buffer = self.buffer.new_empty(max(end, used + used // 2), *self.buffer.shape[1:])
        buffer[:used] = self.buffer[:used]
        return GrowingRows(buffer, end)


@dataclass(frozen=True)
class AttentionState:
    """Keys and values of one user in one layer, and the keys of the blocks complete so far.

    Positions are absolute: an event keeps its position, and a block its number, when older blocks
    have left. All events held are visible to later ones; the open compression window needs nothing
    but the keys held. Made by ``start`` of an attention layer.

    Attributes:
        block_size: events in a block, S.
        reach: keys that one block key is made of, ending where the block ends; 0 for dense
            attention, which has no block keys.
        length: events of the history so far, those that have left included.
        first: position of the oldest event held, a multiple of ``block_size``.
        events: rows [G, 2d], an event's rotated key and its value side by side.
        blocks: rows [G, d], the key of each complete block from block ``first // S`` on.
    """

    block_size: int
    reach: int
    length: int
    first: int
    events: GrowingRows
    blocks: GrowingRows

    @classmethod
    def empty(
        cls,
        *,
        num_kv_heads: int,
        head_dim: int,
        block_size: int,
        reach: int,
        like: Tensor,
    ) -> AttentionState:
        """The state of a user without events, on the device and in the type of ``like``."""
        events = like.new_empty(0, num_kv_heads, 2 * head_dim)
        blocks = like.new_empty(0, num_kv_heads, head_dim)
        return cls(block_size, reach, 0, 0, GrowingRows(events, 0), GrowingRows(blocks, 0))

    @property
    def held(self) -> int:
        """Events held, ``length - first``."""
        return self.length - self.first

    @property
    def num_blocks(self) -> int:
        """Block keys held."""
        return self.held // self.block_size if self.reach else 0

    @property
    def keys_values(self) -> Tensor:
        """[held, G, 2d], a view of the buffer."""
        return self.events.buffer[: self.held]

    @property
    def keys(self) -> Tensor:
        """Rotated keys [held, G, d], a view."""
        return self.keys_values[..., : self.blocks.buffer.shape[-1]]

    @property
    def values(self) -> Tensor:
        """Values [held, G, d], a view."""
        return self.keys_values[..., self.blocks.buffer.shape[-1] :]

    @property
    def block_keys(self) -> Tensor:
        """Keys of the complete blocks held, [num_blocks, G, d], a view."""
        return self.blocks.buffer[: self.num_blocks]

    @property
    def layout(self) -> tuple[object, ...]:
        """What must be the same in every state of an attention layer."""
        buffer = self.blocks.buffer
        return self.block_size, self.reach, *buffer.shape[1:], buffer.dtype, buffer.device

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, room for growth included: at most half as much again as is used.

        In numbers that are used: (2 * held + held // S) * G * d * bytes of an element. States that
        grew from each other each count the buffers they share.
        """
        return self.events.buffer.nbytes + self.blocks.buffer.nbytes

    def extend(
        self, k: Tensor, v: Tensor, pool: Callable[[Tensor], Tensor] | None
    ) -> AttentionState:
        """The state after more events; this one stays as it is and may be extended again.

        The new state shares the buffers of this one where nothing has been added to them since;
        otherwise (a second extension of the same state) it copies them first.

        Args:
            k, v: [t, G, d], rotated keys and values of the events at positions ``length`` and on.
            pool: [blocks, G, reach, d] windows of keys to [blocks, G, d] block keys, called with
                the blocks that became complete; None where there are no block keys.
        """
        if not len(k):
            return self
        grown = self.with_room(len(k))
        grown.keys_values[self.held :] = torch.cat((k, v), dim=-1)
        return grown.with_blocks(self.num_blocks, pool)

    def with_room(self, count: int) -> AttentionState:
        """The state after ``count`` more events; their rows in ``events`` are still to be written.

        Shares buffers with this one, or copies them, as :meth:`extend` does, with which the block
        keys come by :meth:`with_blocks`.
        """
        if not count:
            return self
        events = self.events.claim(self.held, count)
        return AttentionState(
            self.block_size, self.reach, self.length + count, self.first, events, self.blocks
        )

    def with_blocks(self, known: int, pool: Callable[[Tensor], Tensor] | None) -> AttentionState:
        """The state with the keys of its complete blocks, of which it has the first ``known``."""
        if pool is None or self.num_blocks == known:
            return self
        block_keys = pool(self._windows(known))
        blocks = self.blocks.claim(known, len(block_keys))
        blocks.buffer[known : self.num_blocks] = block_keys
        return replace(self, blocks=blocks)

    def _windows(self, known: int) -> Tensor:
        """Keys that the block keys from the ``known``-th on are made of, [blocks, G, reach, d]."""
        start = (known + 1) * self.block_size - self.reach
        keys = self.keys[max(start, 0) : self.num_blocks * self.block_size]
        # Only before position 0: trimming leaves what the open window reaches.
        keys = pad(keys, (0, 0, 0, 0, max(-start, 0), 0))
        return keys.unfold(0, self.reach, self.block_size).transpose(-1, -2)

    def trim(self, keep: int) -> AttentionState:
        """The state without its oldest blocks; the last ``keep`` events stay, and may be more.

        Whole blocks leave, and only those that no kept event stands in and that the window of the
        open block does not reach (with a window of 2 S, the last complete block always stays).
        Later events no longer see what has left, on either path. Everything else is as if nothing
        had left: positions, distances and block numbers stay, and block keys, those of later blocks
        included, are those of the whole history. The history still starts at position 0: zeros in
        a compression window stand only for positions before 0, and sinks are positions 0 ..
        sinks-1, which are gone once block 0 has left; no other event takes their place.

        Copies what is kept into buffers without spare room, and so frees the rest.
        """
        size = self.block_size
        open_window = (self.length // size + 1) * size - self.reach
        first = min(self.length - keep, open_window) // size * size
        if first <= self.first:
            return self
        gone = first - self.first
        events = self.keys_values[gone:].clone()
        blocks = self.block_keys[gone // size :].clone()
        return replace(
            self,
            first=first,
            events=GrowingRows(events, len(events)),
            blocks=GrowingRows(blocks, len(blocks)),
        )

    def to_dict(self) -> dict[str, Tensor]:
        """Tensors that say everything, contiguous and without spare room, as safetensors wants."""
        numbers = {name: torch.tensor(getattr(self, name)) for name in NUMBERS}
        return numbers | {name: getattr(self, name).clone() for name in TENSORS}

    @classmethod
    def from_dict(cls, tensors: Mapping[str, Tensor]) -> AttentionState:
        """The state that :meth:`to_dict` described, on the device of the tensors.

        Raises:
            ValueError: a tensor is missing or does not fit the others.
        """
        missing = [name for name in (*NUMBERS, *TENSORS) if name not in tensors]
        if missing:
            raise ValueError(f"the attention state has no {', '.join(missing)}")
        block_size, reach, first = (int(tensors[name]) for name in NUMBERS)
        keys, values, block_keys = (tensors[name] for name in TENSORS)
        if block_size < 1 or min(reach, first) < 0 or first % block_size:
            raise ValueError(
                f"the attention state has block_size {block_size}, reach {reach}, first {first}"
            )
        _check_shapes(keys, values, block_keys, len(keys) // block_size if reach else 0)
        events = torch.cat((keys, values), dim=-1)
        return cls(
            block_size,
            reach,
            first + len(events),
            first,
            GrowingRows(events, len(events)),
            GrowingRows(block_keys, len(block_keys)),
        )


def _check_shapes(keys: Tensor, values: Tensor, block_keys: Tensor, num_blocks: int) -> None:
    if keys.dim() != 3 or values.shape != keys.shape:
        raise ValueError(
            f"the attention state has keys {list(keys.shape)} and values {list(values.shape)}: "
            "both must be [events, G, d]"
        )
    needed = (num_blocks, *keys.shape[1:])
    if tuple(block_keys.shape) != needed:
        raise ValueError(
            f"the attention state has block_keys {list(block_keys.shape)} for {len(keys)} events: "
            f"{list(needed)} needed"
        )


def check_extension(
    x: Tensor, counts: Sequence[int], states: Sequence[AttentionState], layout: tuple[object, ...]
) -> None:
    """Refuse new events that do not fit the states, and states of another attention.

    Args:
        x: [t, D], the new events, user after user.
        counts: new events of each user, t in all.
        states: of each user.
        layout: that of the attention's states.

    Raises:
        ValueError: ``counts`` do not fit ``x`` and ``states``, or a state has another layout.
    """
    if len(counts) != len(states) or sum(counts) != len(x) or min(counts, default=0) < 0:
        raise ValueError(
            f"counts {list(counts)} do not fit {len(states)} states and {len(x)} new events"
        )
    for number, state in enumerate(states):
        if state.layout != layout:
            raise ValueError(
                f"state {number} has block_size, reach, G, d, type and device {state.layout}: "
                f"this attention has {layout}"
            )


def new_positions(
    counts: Sequence[int], states: Sequence[AttentionState], device: torch.device
) -> Tensor:
    """Positions of the next ``counts`` events of each user, int64 [t]."""
    ranges = [
        torch.arange(state.length, state.length + count, device=device)
        for state, count in zip(states, counts, strict=True)
    ]
    return joined(ranges) if ranges else torch.arange(0, device=device)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts one after another; one part alone is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def extend_states(
    k: Tensor,
    v: Tensor,
    counts: Sequence[int],
    states: Sequence[AttentionState],
    pool: Callable[[Tensor], Tensor] | None,
) -> list[AttentionState]:
    """Every user's state after its next events; k and v are [t, G, d], user after user."""
    return [
        state.extend(keys, values, pool)
        for state, keys, values in zip(
            states, k.split(list(counts)), v.split(list(counts)), strict=True
        )
    ]
