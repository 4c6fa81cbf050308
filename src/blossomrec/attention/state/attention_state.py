"""What a layer keeps of one user's history, so that new events need not run the old ones again.

A state is a value: extending or trimming one gives another and leaves the first as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blossomrec.attention.state.paged_states import PagedStates
from blossomrec.attention.state.pages import Layout, Row, Step, rows_at

NUMBERS = ("block_size", "reach", "first")
TENSORS = ("keys", "values", "block_keys")


@dataclass(frozen=True, slots=True)
class AttentionState:
    """One user in pages: the events of a row that are seen, and the keys of complete blocks.

    Positions are absolute: an event keeps its position, and a block its number, when older blocks
    have left. All events held are visible to later ones; the open compression window needs nothing
    but the keys held. Made by ``start`` of an attention layer.

    Extending the newest state of a row writes behind it; any other gets a row of its own, which
    shares the pages that are full.

    Attributes:
        states: where it is kept, with all layers of its model.
        row: of the table of pages.
        length: events of the history so far, those that have left included.
        number: of the layer whose keys and values are shown.
    """

    states: PagedStates
    row: Row
    length: int
    number: int = 0

    @classmethod
    def empty(cls, states: PagedStates, first: int = 0) -> AttentionState:
        """A user without events, whose next one has the position ``first``."""
        return cls(states, states.row(first), first)

    @property
    def layout(self) -> Layout:
        """What must be the same in every state of an attention layer."""
        return self.states.layout

    @property
    def first(self) -> int:
        """Position of the oldest event held, a multiple of the block size."""
        return self.row.first * self.layout.block_size

    @property
    def held(self) -> int:
        """Events held, ``length - first``."""
        return self.length - self.first

    @property
    def num_blocks(self) -> int:
        """Block keys held."""
        return self.held // self.layout.block_size if self.layout.reach else 0

    @property
    def keys_values(self) -> Tensor:
        """[held, G, 2d], an event's rotated key and its value side by side."""
        pages = rows_at(self.states.layers[self.number].pages, self._pages)
        return pages.transpose(1, 2).flatten(0, 1)[: self.held]

    @property
    def keys(self) -> Tensor:
        """Rotated keys, [held, G, d]."""
        return self.keys_values[..., : self.layout.size]

    @property
    def values(self) -> Tensor:
        """Values, [held, G, d]."""
        return self.keys_values[..., self.layout.size :]

    @property
    def block_keys(self) -> Tensor:
        """Keys of the complete blocks held, [num_blocks, G, d]."""
        return rows_at(self.states.layers[self.number].block_keys, self._pages[: self.num_blocks])

    @property
    def nbytes(self) -> int:
        """Bytes of the pages held, in all layers; states that share a page each count it."""
        return len(self._pages) * self.states.page_bytes

    @property
    def _pages(self) -> np.ndarray:
        return self.states.pages_of(self.row, self.length)

    def grown(self, row: Row, length: int) -> AttentionState:
        """The state of a row up to ``length`` events."""
        return AttentionState(self.states, row, length, self.number)

    def trim(self, keep: int) -> AttentionState:
        """The state without its oldest blocks; the last ``keep`` events stay, and may be more.

        Whole blocks leave, and only those that no kept event stands in and that the window of the
        open block does not reach (with a window of 2 S, the last complete block always stays).
        Later events no longer see what has left, on either path. Everything else is as if nothing
        had left: positions, distances and block numbers stay, and block keys, those of later blocks
        included, are those of the whole history. The history still starts at position 0: zeros in
        a compression window stand only for positions before 0, and sinks are positions 0 ..
        sinks-1, which are gone once block 0 has left; no other event takes their place.

        The pages of what has left return with this state, if nothing else holds it.
        """
        size = self.layout.block_size
        open_window = (self.length // size + 1) * size - self.layout.reach
        gone = min(self.length - keep, open_window) // size - self.row.first
        if gone <= 0:
            return self
        return self.grown(self.states.share(self.row, self.length, gone), self.length)

    def to_dict(self) -> dict[str, Tensor]:
        """Tensors that say everything, contiguous, as safetensors wants."""
        values = (self.layout.block_size, self.layout.reach, self.first)
        numbers = {name: torch.tensor(x) for name, x in zip(NUMBERS, values, strict=True)}
        return numbers | {name: getattr(self, name).clone() for name in TENSORS}

    @classmethod
    def from_dict(cls, tensors: Mapping[str, Tensor]) -> AttentionState:
        """The state that :meth:`to_dict` described, on the device of the tensors.

        Raises:
            ValueError: a tensor is missing or does not fit the others.
        """
        return state_of([tensors])


def state_of(layers: Sequence[Mapping[str, Tensor]]) -> AttentionState:
    """The state of a model from what :meth:`AttentionState.to_dict` gave of each layer.

    Raises:
        ValueError: a tensor is missing or does not fit the others.
    """
    found = [_checked(tensors) for tensors in layers]
    layouts, events = {layout for layout, *_ in found}, {(first, end) for _, first, end in found}
    if len(events) > 1:
        raise ValueError(f"the layers of the state hold events {sorted(events)}")
    if len(layouts) > 1:
        raise ValueError(f"the layers of the state have {len(layouts)} layouts: one is needed")
    layout, first, length = found[0]
    start = AttentionState.empty(PagedStates.shared(layout, len(layers)), first)

    def write(step: Step) -> None:
        for layer, tensors in zip(start.states.layers, layers, strict=True):
            layer.write(tensors["keys"], tensors["values"], tensors["block_keys"], step)

    return start.states.extend([start], [length - first], write)[1][0]


def _checked(tensors: Mapping[str, Tensor]) -> tuple[Layout, int, int]:
    """Layout, position of the oldest event and length of the history."""
    missing = [name for name in (*NUMBERS, *TENSORS) if name not in tensors]
    if missing:
        raise ValueError(f"the attention state has no {', '.join(missing)}")
    block_size, reach, first = (int(tensors[name]) for name in NUMBERS)
    keys, values, block_keys = (tensors[name] for name in TENSORS)
    if block_size < 1 or min(reach, first) < 0 or first % block_size:
        raise ValueError(
            f"the attention state has block_size {block_size}, reach {reach}, first {first}"
        )
    if keys.dim() != 3 or values.shape != keys.shape:
        raise ValueError(
            f"the attention state has keys {list(keys.shape)} and values {list(values.shape)}: "
            "both must be [events, G, d]"
        )
    needed = (len(keys) // block_size if reach else 0, *keys.shape[1:])
    if tuple(block_keys.shape) != needed:
        raise ValueError(
            f"the attention state has block_keys {list(block_keys.shape)} for {len(keys)} events: "
            f"{list(needed)} needed"
        )
    heads, size = keys.shape[1:]
    layout = Layout(block_size, reach, heads, size, keys.dtype, keys.device)
    return layout, first, first + len(keys)
