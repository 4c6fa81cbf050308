"""Keys, values and block keys of many users in pages, and which pages are whose."""

from __future__ import annotations

import operator
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from blossomrec.attention.state.pages import (
    Change,
    Layout,
    Numbers,
    OutOfPagesError,
    PagedLayer,
    Row,
    Step,
    grown,
)

if TYPE_CHECKING:
    from blossomrec.attention.state.attention_state import AttentionState

Result = TypeVar("Result")

_shared: WeakValueDictionary[tuple[Layout, int], PagedStates] = WeakValueDictionary()
_sharing = threading.Lock()


# From so many users on, arrays are faster than lists.
MANY = 16


class PagedStates:
    """Keys, values and block keys of many users in all layers of a model.

    A user is an :class:`AttentionState`, a value: a row of the table of pages and how many events
    of it are seen. What has been written stays as it is, so that rows may share pages; a page that
    another row holds is copied before more is written to it. Pages return when the last state that
    sees them has gone.

    Room grows by half when it is used up, which copies the pages, one layer after the other;
    ``pages``, ``users`` and ``blocks`` make room beforehand. On a CPU memory is taken only when a
    page is first used.

    Args:
        layout: of each layer.
        layers: how many there are.
        pages: pages to have room for at once.
        users: users to have room for at once.
        blocks: blocks of the longest history to have room for at once.
        max_bytes: what :attr:`nbytes` may come to; no bound where it is None.

    Raises:
        OutOfPagesError: the room asked for exceeds ``max_bytes``.
    """

    def __init__(
        self,
        layout: Layout,
        layers: int = 1,
        *,
        pages: int = 0,
        users: int = 0,
        blocks: int = 0,
        max_bytes: int | None = None,
    ):
        self.layout, self.max_bytes = layout, max_bytes
        self.block_size = layout.block_size
        # Counts how often a tensor was exchanged for a larger one: captured graphs are then stale.
        self.generation = 0
        self.layers = tuple(PagedLayer.empty(layout, 1) for _ in range(layers))
        self._known = np.zeros((1, 1), np.int32)
        self._set_table(layout.zeros(1, 1, dtype=torch.int32))
        self._holders = np.zeros(1, np.int32)  # rows that hold each page
        self._free_pages, self._free_rows = Numbers(), Numbers()
        self._returned: deque[tuple[int, int, int]] = deque()
        # Whoever extends states writes to the tensors without the lock: they may not grow then.
        self._lock = threading.RLock()
        self._changing = threading.Condition(self._lock)
        self._writing = self._waiting = 0
        self.reserve(pages=pages, users=users, blocks=blocks)

    @classmethod
    def shared(cls, layout: Layout, layers: int = 1) -> PagedStates:
        """Those of the process for a layout, which end with the last state that lives in them."""
        with _sharing:
            found = _shared.get((layout, layers))
            if found is None:
                found = _shared[layout, layers] = cls(layout, layers)
            return found

    @property
    def nbytes(self) -> int:
        """Bytes on the device, free pages included."""
        return self._bytes(len(self._holders), *self.table.shape)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page and its block key, in all layers together."""
        return len(self.layers) * self.layout.page_bytes

    @property
    def free_pages(self) -> int:
        """Pages that wait for a block."""
        with self._lock:
            self._take_back()
            return len(self._free_pages)

    @property
    def free_users(self) -> int:
        """Rows that wait for a user."""
        with self._lock:
            self._take_back()
            return len(self._free_rows)

    def row(self, first: int = 0) -> Row:
        """A row without events, whose next one has the position ``first``.

        Raises:
            OutOfPagesError: there is no room; nothing has changed.
        """
        with self._lock:
            self._make_rows(1)
            return self._new_row(np.empty(0, np.int32), first // self.block_size, first)

    def share(self, row: Row, length: int, gone: int) -> Row:
        """A row with the pages of another one, but for its oldest ``gone``, up to ``length``.

        Raises:
            OutOfPagesError: there is no room; nothing has changed.
        """
        with self._lock:
            self._make_rows(1)
            made = self._new_row(self.pages_of(row, length)[gone:], row.first + gone, length)
            self._send([made.index])
            return made

    def pages_of(self, row: Row, length: int) -> np.ndarray:
        """Pages of the blocks held of a history of ``length`` events, oldest first, int32."""
        return self._known[row.index, : -(-length // self.block_size) - row.first]

    def reserve(self, *, pages: int = 0, users: int = 0, blocks: int = 0) -> None:
        """Have room for so many pages and users in all, and for histories of so many blocks.

        Raises:
            OutOfPagesError: it would exceed ``max_bytes``; nothing has changed.
        """
        with self._lock:
            self._await(lambda: not self._writing)
            self._reserve(pages, users, blocks)

    def step(
        self,
        states: Sequence[AttentionState],
        counts: Sequence[int] | None = None,
        *,
        pad_to: int | None = None,
    ) -> tuple[Step, list[AttentionState]]:
        """Make room for more events; they are yet to be written to every layer, before others.

        Nobody else may use these states meanwhile; see :meth:`extend`.

        Args:
            states: of each user.
            counts: events of each; one where it is None.
            pad_to: fill the step up to so many events with some that are nobody's.

        Returns:
            Where the events go, and the states with them.

        Raises:
            ValueError: there are more events than ``pad_to``.
            OutOfPagesError: there is no room; nothing has changed.
        """
        counts = [1] * len(states) if counts is None else counts
        if pad_to is not None and len(states) > pad_to:
            raise ValueError(f"{len(states)} users do not fit a step of {pad_to}")
        with self._lock:
            return self._step(states, counts, pad_to)

    def _step(
        self, states: Sequence[AttentionState], counts: Sequence[int], pad_to: int | None
    ) -> tuple[Step, list[AttentionState]]:
        """See :meth:`step`; by whoever holds the lock."""
        self._take_back()
        if self._writing:
            self._await_room(states, counts)
        rows = [state.row for state in states]
        if changes := self._changes(states, counts):
            self._change(changes, rows, states)
        step = self._events(rows, states, counts, pad_to)
        after = []
        for state, row, count in zip(states, rows, counts, strict=True):
            if count:
                row.length = state.length + count
                state = state.grown(row, row.length)
            after.append(state)
        return step, after

    def extend(
        self,
        states: Sequence[AttentionState],
        counts: Sequence[int],
        write: Callable[[Step], Result],
    ) -> tuple[Result, list[AttentionState]]:
        """Make a step and write it to every layer, as several threads may for states of theirs.

        Args:
            states, counts: see :meth:`step`.
            write: writes the step to every layer.

        Returns:
            What ``write`` gives, and the states after the events.

        Raises:
            OutOfPagesError: as of :meth:`step`.
        """
        with self._lock:
            step, after = self._step(states, counts, None)
            self._writing += 1
        try:
            return write(step), after
        finally:
            with self._lock:
                self._writing -= 1
                if self._waiting:
                    self._changing.notify_all()

    def _change(
        self, changes: list[Change], rows: list[Row], states: Sequence[AttentionState]
    ) -> None:
        """Make room for a step in the table; rows that are made anew take their places in rows."""
        self._make_room(
            pages=sum(change.opened + change.copied for change in changes),
            rows=sum(change.forked for change in changes),
            blocks=max(change.had + change.opened for change in changes),
        )
        for number, had, opened, forked, copied in changes:
            row = rows[number]
            if forked:
                pages = self._known[row.index, :had]
                row = rows[number] = self._new_row(pages, row.first, states[number].length)
            if copied:
                self._copy_page(row.index, had - 1)
            if opened:
                self._hold(row.index, had, had + opened)
        # The pages of new events go to the device with them.
        self._send([rows[change.number].index for change in changes if change.forked])

    def _changes(self, states: Sequence[AttentionState], counts: Sequence[int]) -> list[Change]:
        """What the table needs for so many more events of each; most need nothing."""
        if len(states) >= MANY:
            return self._changes_of_many(states, counts)
        size, found = self.block_size, []
        claimed: set[Row] = set()
        for number, (state, count) in enumerate(zip(states, counts, strict=True)):
            if not count:
                continue
            row, length = state.row, state.length
            # Behind others' events, and those of this step, more are not visible alone.
            forked = row.length != length or row in claimed
            claimed.add(row)
            inside, had = length % size, -(-length // size) - row.first
            opened = -(-(length + count) // size) - row.first - had
            copied = inside > 0 and (
                forked or self._holders.item(self._known.item(row.index, had - 1)) > 1
            )
            if opened or forked or copied:
                found.append(Change(number, had, opened, forked, copied))
        return found

    def _changes_of_many(
        self, states: Sequence[AttentionState], counts: Sequence[int]
    ) -> list[Change]:
        """As :meth:`_changes`, for all at once."""
        rows, size = [state.row for state in states], self.block_size
        index, first, written = _numbers(rows)
        length, count = np.array([state.length for state in states]), np.array(counts)
        claimed = np.ones(len(rows), bool)
        claimed[np.unique(np.where(count > 0, index, -1), return_index=True)[1]] = False
        forked = (written != length) | claimed
        had = -(-length // size) - first
        opened = -(-(length + count) // size) - first - had
        shared = self._holders[self._known[index, np.maximum(had - 1, 0)]] > 1
        copied = (length % size > 0) & (forked | shared)
        some = np.flatnonzero((count > 0) & ((opened > 0) | forked | copied))
        columns = (some, had[some], opened[some], forked[some], copied[some])
        return [
            Change(*each) for each in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def _events(
        self,
        rows: list[Row],
        states: Sequence[AttentionState],
        counts: Sequence[int],
        pad_to: int | None,
    ) -> Step:
        """The step of the ``counts`` events behind the states, whose rows have their pages."""
        size, known = self.block_size, self._known
        single = counts.count(1) == len(rows)
        if single and pad_to is None and len(rows) < MANY:
            return self._few_events(rows, states)
        position = [state.length for state in states]
        user, first, _ = _numbers(rows)
        position = np.array(position, np.int64)
        if not single:
            count = np.array(counts, np.int64)
            user, first, start = (each.repeat(count) for each in (user, first, position))
            position = start + np.arange(len(start)) - (count.cumsum() - count).repeat(count)
        closing = np.flatnonzero(position % size == size - 1)
        events, taken = max(len(user), pad_to or 0), len(user)
        # What fills up is nobody's: row, position, block and page 0.
        parts = np.zeros(4 * events + len(closing), np.int32)
        page = known[user, position // size - first]
        parts[: 4 * events].reshape(4, events)[:, :taken] = user, position, first, page
        parts[4 * events :] = closing
        return Step(events, size, self.table, known, parts, self._sent(parts))

    def _few_events(self, rows: list[Row], states: Sequence[AttentionState]) -> Step:
        """The step of one event each; of so few, lists are faster."""
        size, known = self.block_size, self._known
        user, position, first, page, closing = [], [], [], [], []
        for event, row in enumerate(rows):
            index, gone, at = row.index, row.first, states[event].length
            block, inside = divmod(at, size)
            user.append(index)
            position.append(at)
            first.append(gone)
            page.append(known.item(index, block - gone))
            if inside == size - 1:
                closing.append(event)
        parts = np.array(user + position + first + page + closing, np.int32)
        return Step(len(rows), size, self.table, known, parts, self._sent(parts))

    def _copy_page(self, row: int, column: int) -> None:
        """Give a row a page of its own in place of one that it shares."""
        old = self._known[row, column : column + 1].copy()
        self._hold(row, column, column + 1)
        for layer in self.layers:
            layer.copy(int(old[0]), int(self._known[row, column]))
        self._let_go(old)

    def _hold(self, row: int, start: int, stop: int) -> None:
        """Put free pages into columns of a row."""
        pages = self._free_pages.take(stop - start)
        self._known[row, start:stop] = pages
        self._holders[pages] = 1

    def _let_go(self, pages: np.ndarray) -> None:
        """Pages that a row holds no longer."""
        self._holders[pages] -= 1
        # The first are taken first, so that those of a long history follow each other.
        self._free_pages.back += pages[self._holders[pages] == 0][::-1].tolist()

    def _new_row(self, pages: np.ndarray, first: int, length: int) -> Row:
        (index,) = self._free_rows.take(1)
        self._known[index, : len(pages)] = pages
        self._holders[pages] += 1
        return Row(index, first, length, self._returned)

    def _take_back(self) -> None:
        """Rows that nothing holds any more, and their pages."""
        while self._returned:
            index, first, length = self._returned.popleft()
            self._let_go(self._known[index, : -(-length // self.block_size) - first])
            self._free_rows.back.append(index)

    def _await_room(self, states: Sequence[AttentionState], counts: Sequence[int]) -> None:
        """Until nobody writes, unless there is room enough for so many more events of each."""
        events, users = sum(counts), len(states)
        longest = max((state.length for state in states), default=0) + events
        wanted = events // self.block_size + 2 * users, users, longest // self.block_size + 1

        def may_change() -> bool:
            self._take_back()
            free = (len(self._free_pages), len(self._free_rows), self.table.shape[1])
            return not self._writing or all(map(operator.ge, free, wanted))

        self._await(may_change)

    def _await(self, may_change: Callable[[], bool]) -> None:
        self._waiting += 1
        try:
            self._changing.wait_for(may_change)
        finally:
            self._waiting -= 1

    def _make_rows(self, count: int) -> None:
        self._take_back()
        self._await(lambda: not self._writing or count <= len(self._free_rows))
        self._make_room(rows=count)

    def _make_room(self, *, pages: int = 0, rows: int = 0, blocks: int = 0) -> None:
        """So many more pages and rows free, and columns for ``blocks``; half as much again."""
        needs = (pages - len(self._free_pages), rows - len(self._free_rows))
        sizes = [len(self._holders) - 1, len(self.table) - 1, self.table.shape[1]]
        least = [sizes[0] + max(0, needs[0]), sizes[1] + max(0, needs[1]), max(sizes[2], blocks)]
        if least == sizes:
            return
        ample = [
            max(new, old + old // 2) if new > old else old
            for new, old in zip(least, sizes, strict=True)
        ]
        try:
            self._reserve(*ample)
        except OutOfPagesError:
            self._reserve(*least)

    def _reserve(self, pages: int, users: int, blocks: int) -> None:
        held, (rows, width) = len(self._holders), self.table.shape
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
        if wanted[0] > held:
            for layer in self.layers:
                layer.grow(wanted[0])
        self._set_table(grown(self.table, self.layout, *wanted[1:]))
        # Zeros of which only those that are used take memory.
        before, self._holders = self._holders, np.zeros(wanted[0], np.int32)
        self._holders[:held] = before
        self._free_pages.end, self._free_rows.end = wanted[:2]

    def _set_table(self, table: Tensor) -> None:
        """The table on the device and on the host; on a CPU the two are one."""
        self.table = table
        if table.device.type == "cpu":
            self._known = table.numpy()
        else:
            rows, width = self._known.shape
            self._known = np.pad(self._known, ((0, len(table) - rows), (0, table.shape[1] - width)))

    def _send(self, rows: Sequence[int] | np.ndarray) -> None:
        """Tell the device the pages of rows."""
        if len(rows) and self.table.device.type != "cpu":
            index = np.asarray(rows, np.int64)
            pages, index = torch.from_numpy(self._known[index]), torch.from_numpy(index)
            self.table.index_copy_(0, self._moved(index), self._moved(pages))

    def _sent(self, numbers: np.ndarray) -> Tensor | None:
        """On a device that is not the host, without a wait for it."""
        return self._moved(torch.from_numpy(numbers)) if self.table.is_cuda else None

    def _moved(self, numbers: Tensor) -> Tensor:
        """On the device, without a wait for it."""
        if not self.table.is_cuda:
            return numbers
        return numbers.pin_memory().to(self.table.device, non_blocking=True)

    def _bytes(self, pages: int, rows: int, width: int) -> int:
        return pages * self.page_bytes + rows * width * 4


def _numbers(rows: Sequence[Row]) -> np.ndarray:
    """Index, oldest block held and events written of rows, int64 [3, B]."""
    found = np.empty((3, len(rows)), np.int64)
    found[0] = [row.index for row in rows]
    found[1] = [row.first for row in rows]
    found[2] = [row.length for row in rows]
    return found
