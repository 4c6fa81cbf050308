"""Kept states of many users in pages of one block each, so that one step serves all of them.

A page is one block of S events of one user, in every layer alike. Which pages a user has stands in
a table that all layers share. The host knows all lengths, so it hands out pages without a look at
the device, and a step is one small copy to it, however many users take part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from blossomrec.attention.state.attention_state import AttentionState, GrowingRows
from blossomrec.attention.state.paged.pages import (
    NOBODY,
    OutOfPagesError,
    PagedLayer,
    Prefill,
    Step,
    grown,
)

# Rows of users, on the host.
Users = Sequence[int] | np.ndarray | Tensor


class PagedStates:
    """Keys, values and block keys of many users in all layers of a model.

    Unlike :class:`AttentionState` it is not a value: a step changes it in place, and one thread at
    a time may use it. Users are known by the row that :meth:`add` gives. Positions are absolute and
    trimming follows :meth:`AttentionState.trim`. Room grows by half when it is used up, which
    copies the pages, one layer after the other; ``pages``, ``users`` and ``blocks`` make room
    beforehand.

    Args:
        starts: of each layer, the state of a user without events, ``layer.start()``; they say the
            sizes, the type and the device.
        pages: pages to have room for at once.
        users: users to have room for at once.
        blocks: blocks of the longest history to have room for at once.
        max_bytes: what :attr:`nbytes` may come to; no bound where it is None.

    Raises:
        ValueError: there are no layers, they differ, or they are those of dense attention.
        OutOfPagesError: the room asked for exceeds ``max_bytes``.
    """

    def __init__(
        self,
        starts: Sequence[AttentionState],
        *,
        pages: int = 0,
        users: int = 0,
        blocks: int = 0,
        max_bytes: int | None = None,
    ):
        layouts = {start.layout for start in starts}
        if len(layouts) != 1:
            raise ValueError(f"the layers have {len(layouts)} layouts: one is needed")
        start = starts[0]
        if not start.reach:
            raise ValueError("reach is 0: dense attention has no blocks to page by")
        self.starts, self.max_bytes = tuple(starts), max_bytes
        self.block_size = start.block_size
        # Counts how often a tensor was exchanged for a larger one: captured graphs are then stale.
        self.generation = 0
        groups, size = start.blocks.buffer.shape[1:]
        with torch.inference_mode(False):
            like = start.events.buffer
            self.layers = tuple(
                PagedLayer(
                    like.new_zeros(1, groups, self.block_size, 2 * size),
                    like.new_zeros(1, groups, size),
                    start.reach,
                )
                for _ in starts
            )
            self.table = like.new_zeros(1, 1, dtype=torch.int32)
        self._known = np.zeros((1, 1), np.int32)  # the table, on the host
        self._length = np.full(1, -1)  # -1: nobody's row
        self._first = np.zeros(1, np.int64)
        self._free_pages: list[int] = []
        self._free_rows: list[int] = []
        self.reserve(pages=pages, users=users, blocks=blocks)

    @property
    def nbytes(self) -> int:
        """Bytes on the device, free pages included."""
        return self._bytes(len(self.layers[0].pages), *self.table.shape)

    @property
    def free_pages(self) -> int:
        """Pages that wait for a block."""
        return len(self._free_pages)

    @property
    def free_users(self) -> int:
        """Rows that wait for a user."""
        return len(self._free_rows)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page and its block key, in all layers together."""
        return sum(layer.page_bytes for layer in self.layers)

    def length(self, user: int) -> int:
        """Events of the user's history so far, those that have left included."""
        self._checked([user])
        return int(self._length[user])

    def first(self, user: int) -> int:
        """Position of the user's oldest event held."""
        self._checked([user])
        return int(self._first[user]) * self.block_size

    def add(self, states: Sequence[AttentionState] | None = None) -> int:
        """Take in a user, with the history that the states of all layers hold; gives the row.

        Raises:
            ValueError: the states do not fit the layers or each other.
            OutOfPagesError: there is no room; nothing has changed.
        """
        states = self.starts if states is None else tuple(states)
        self._check_states(states)
        held = states[0].held
        count = -(-held // self.block_size)
        self._make_room(pages=count, rows=1, blocks=count)
        user = self._free_rows.pop()
        pages = self._take(count)
        self._length[user] = states[0].length
        self._first[user] = states[0].first // self.block_size
        self._set_row(user, pages)
        rows = self._on_device(pages)
        for layer, state in zip(self.layers, states, strict=True):
            events = pad(state.keys_values, (0, 0, 0, 0, 0, count * self.block_size - held))
            events = events.unflatten(0, (count, self.block_size)).transpose(1, 2)
            layer.pages.index_copy_(0, rows, events)
            layer.block_keys.index_copy_(0, rows[: state.num_blocks], state.block_keys)
        return user

    def prefill(self, lengths: Sequence[int] | np.ndarray) -> Prefill:
        """Take in a user for each history of so many events, all of which are yet to be written.

        Every layer is then to be brought up to it with ``prefill``, before the next step.

        Args:
            lengths: [B], on the host.

        Raises:
            OutOfPagesError: there is no room; nothing has changed.
        """
        lengths = np.asarray(lengths, np.int64)
        size, count = self.block_size, len(lengths)
        blocks = -(-lengths // size)
        self._make_room(pages=int(blocks.sum()), rows=count, blocks=int(blocks.max(initial=0)))
        users = np.array([self._free_rows.pop() for _ in range(count)], np.int64)
        pages = np.array(self._take(int(blocks.sum())), np.int64)
        history = np.repeat(np.arange(count), blocks)
        block = np.arange(len(pages)) - np.repeat(blocks.cumsum() - blocks, blocks)
        held = np.minimum(lengths[history] - block * size, size)
        self._length[users], self._first[users] = lengths, 0
        self._known[users] = NOBODY
        self._known[users[history], block] = pages
        index = np.arange(int(lengths.sum())) - np.repeat(held.cumsum() - held, held)
        parts = users, np.repeat(pages, held), index, pages[held == size]
        row, *where = (self._moved(torch.from_numpy(part)) for part in parts)
        self.table.index_copy_(0, row, self._moved(torch.from_numpy(self._known[users])))
        return Prefill(users, *where)

    def read(self, user: int) -> tuple[AttentionState, ...]:
        """The user's states of all layers, as values of their own."""
        length, first = self.length(user), self.first(user)
        pages = self._on_device(self._pages_of(user))
        complete = pages[: (length - first) // self.block_size]
        states = []
        for layer, start in zip(self.layers, self.starts, strict=True):
            events = layer.pages.index_select(0, pages).transpose(1, 2).flatten(0, 1)
            events = events[: length - first].clone()
            blocks = layer.block_keys.index_select(0, complete)
            states.append(
                AttentionState(
                    self.block_size,
                    start.reach,
                    length,
                    first,
                    GrowingRows(events, len(events)),
                    GrowingRows(blocks, len(blocks)),
                )
            )
        return tuple(states)

    def drop(self, user: int) -> None:
        """Forget a user; the row and the pages may become another's."""
        self._checked([user])
        self._free_pages += self._pages_of(user)
        self._free_rows.append(user)
        self._length[user] = -1

    def trim(self, user: int, keep: int) -> None:
        """Give back the user's oldest pages; see :meth:`AttentionState.trim`."""
        length, first = self.length(user), int(self._first[user])
        open_window = (length // self.block_size + 1) * self.block_size - self.starts[0].reach
        gone = min(length - keep, open_window) // self.block_size - first
        if gone <= 0:
            return
        pages = self._pages_of(user)
        self._free_pages += pages[:gone]
        self._first[user] = first + gone
        self._set_row(user, pages[gone:])

    def reserve(self, *, pages: int = 0, users: int = 0, blocks: int = 0) -> None:
        """Have room for so many pages and users in all, and for histories of so many blocks.

        Raises:
            OutOfPagesError: it would exceed ``max_bytes``; nothing has changed.
        """
        held = len(self.layers[0].pages)
        rows, width = self.table.shape
        wanted = (max(held, pages + 1), max(rows, users + 1), max(width, blocks))
        if wanted == (held, rows, width):
            return
        needed = self._bytes(*wanted)
        if self.max_bytes is not None and needed > self.max_bytes:
            raise OutOfPagesError(
                f"{needed} bytes are needed for {wanted[0]} pages and {wanted[1]} users, "
                f"max_bytes is {self.max_bytes}"
            )
        self.generation += 1
        for layer in self.layers:
            layer.grow(wanted[0])
        self.table = grown(self.table, wanted[1], wanted[2])
        more = wanted[1] - rows
        self._known = np.pad(self._known, ((0, more), (0, wanted[2] - width)))
        self._length = np.pad(self._length, (0, more), constant_values=-1)
        self._first = np.pad(self._first, (0, more))
        # The lowest are taken first.
        self._free_pages[:0] = range(wanted[0] - 1, held - 1, -1)
        self._free_rows[:0] = range(wanted[1] - 1, rows - 1, -1)

    def step(self, users: Users, *, pad_to: int | None = None) -> Step:
        """Make room for one more event of each of ``users`` and count it.

        Every layer is then to be brought up to it with ``extend_paged``, before the next step.

        Args:
            users: [B], all different; on the host.
            pad_to: fill the step up to so many events with some that are nobody's.

        Raises:
            ValueError: a user is unknown or named twice, or there are more than ``pad_to``.
            OutOfPagesError: there is no room; nothing has changed.
        """
        user = self._checked(users)
        size = len(user) if pad_to is None else pad_to
        if len(user) > size:
            raise ValueError(f"{len(user)} users do not fit a step of {pad_to}")
        position, first = self._length[user], self._first[user]
        block, place = np.divmod(position, self.block_size)
        columns = np.zeros(size, np.int64)
        columns[: len(user)] = own = block - first
        opening = np.flatnonzero(place == 0)
        if len(opening):
            self._make_room(pages=len(opening), blocks=int(own.max()) + 1)
            self._known[user[opening], own[opening]] = self._take(len(opening))
        self._length[user] = position + 1
        closing = np.flatnonzero(place == self.block_size - 1)
        # What fills up is nobody's: row, position, block and page 0.
        packed = np.zeros(4 * size + len(closing), np.int32)
        packed[: 4 * size].reshape(4, size)[:, : len(user)] = (
            *(user, position, first),
            self._known[user, own],
        )
        packed[4 * size :] = closing
        rows, closing = self._moved(torch.from_numpy(packed)).tensor_split([4 * size])
        return Step(self.table, rows.view(4, size), closing, torch.from_numpy(columns))

    def _moved(self, numbers: Tensor) -> Tensor:
        """On the device, without a wait for it."""
        if self.table.is_cuda:
            numbers = numbers.pin_memory()
        return numbers.to(self.table.device, non_blocking=True)

    def _bytes(self, pages: int, rows: int, width: int) -> int:
        return pages * self.page_bytes + rows * width * 4

    def _make_room(self, *, pages: int = 0, rows: int = 0, blocks: int = 0) -> None:
        """So many more pages and rows free, and columns for ``blocks``; half as much again."""
        needs = (pages - len(self._free_pages), rows - len(self._free_rows))
        sizes = [len(self.layers[0].pages) - 1, len(self.table) - 1, self.table.shape[1]]
        least = [sizes[0] + max(0, needs[0]), sizes[1] + max(0, needs[1]), max(sizes[2], blocks)]
        if least == sizes:
            return
        ample = [
            max(new, old + old // 2) if new > old else old
            for new, old in zip(least, sizes, strict=True)
        ]
        try:
            self.reserve(pages=ample[0], users=ample[1], blocks=ample[2])
        except OutOfPagesError:
            self.reserve(pages=least[0], users=least[1], blocks=least[2])

    def _take(self, count: int) -> list[int]:
        """Free pages."""
        keep = len(self._free_pages) - count
        pages = self._free_pages[keep:][::-1]
        del self._free_pages[keep:]
        return pages

    def _pages_of(self, user: int) -> list[int]:
        """Pages of the blocks held, oldest first."""
        held = int(self._length[user]) - int(self._first[user]) * self.block_size
        return self._known[user, : -(-held // self.block_size)].tolist()

    def _set_row(self, user: int, pages: Sequence[int]) -> None:
        self._known[user] = NOBODY
        self._known[user, : len(pages)] = pages
        self.table[user].copy_(torch.from_numpy(self._known[user]))

    def _on_device(self, pages: Sequence[int]) -> Tensor:
        return torch.tensor(pages, dtype=torch.int64, device=self.table.device)

    def _checked(self, users: Users) -> np.ndarray:
        """The rows of users that are here, int64 [B]."""
        user = np.asarray(users, np.int64)
        # Nobody's row is not here either.
        inside = np.where((user >= 0) & (user < len(self._length)), user, NOBODY)
        here = self._length[inside] >= 0
        if not here.all():
            raise ValueError(f"user {user[~here][0]} is not here")
        if len(set(user.tolist())) < len(user):
            raise ValueError(f"users {user.tolist()}: one is named twice")
        return user

    def _check_states(self, states: Sequence[AttentionState]) -> None:
        if len(states) != len(self.layers):
            raise ValueError(f"{len(states)} states are given for {len(self.layers)} layers")
        for number, state in enumerate(states):
            found = (*state.layout, state.first, state.length)
            needed = (*self.starts[0].layout, states[0].first, states[0].length)
            if found != needed:
                raise ValueError(
                    f"state {number} has block_size, reach, G, d, type, device, first and length "
                    f"{found}: {needed} is needed"
                )
