"""What one layer keeps of many users, whose pages are whose, and where new events go."""

from __future__ import annotations

import contextlib
import mmap
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Row 0 of the table and page 0 are nobody's: what fills up a step of fixed size goes there.
NOBODY = 0
# Where the memory of a CPU begins, in bytes: no page lies on more pages of the system than needed.
ALIGNMENT = 4_096
# From this many bytes on, memory comes fresh from the system. What the C library gives may have
# been used before: it is cleared first, and then all of it takes memory.
FRESH = 1 << 20


class OutOfPagesError(RuntimeError):
    """More pages are needed than the byte budget allows; dropping or trimming users gives some."""


class Layout(NamedTuple):
    """What must be the same in all that is kept together.

    Attributes:
        block_size: events in a block, S; 1 for dense attention.
        reach: keys that one block key is made of, ending where the block ends; 0 for dense
            attention, which has no block keys.
        heads: G key/value heads.
        size: d numbers of a head.
        dtype, device: of the tensors.
    """

    block_size: int
    reach: int
    heads: int
    size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def page_bytes(self) -> int:
        """Bytes of one page of a layer, and its block key."""
        keys = 2 * self.block_size + (self.reach > 0)
        return keys * self.heads * self.size * self.dtype.itemsize

    def zeros(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of zeros; on a CPU, memory is taken when something else is written to it."""
        dtype = dtype or self.dtype
        # Made in inference mode it could not be written to outside of it.
        with torch.inference_mode(False):
            if self.device.type != "cpu":
                return torch.zeros(shape, dtype=dtype, device=self.device)
            count = int(np.prod(shape)) * dtype.itemsize
            memory = _fresh(count) if count >= FRESH else np.zeros(count + ALIGNMENT, np.uint8)
            start = -memory.ctypes.data % ALIGNMENT
            return torch.from_numpy(memory[start : start + count]).view(dtype).view(shape)


def _fresh(count: int) -> np.ndarray:
    """Zeros, uint8 [count]; memory is taken when something is written to it."""
    try:
        memory = mmap.mmap(-1, count + mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{count} bytes for states") from error
    # Huge pages, as NumPy asks for, but for the last one: of neighbours that are alike the system
    # makes one mapping, and it does not fork a process with one that is larger than all memory.
    with contextlib.suppress(AttributeError, OSError):
        memory.madvise(mmap.MADV_HUGEPAGE, 0, count)
    return np.frombuffer(memory, np.uint8, count)


class Row:
    """A row of the table of pages; they return when nothing holds this object any more.

    Attributes:
        index: of the row.
        first: number of the oldest block held.
        length: events written so far, those that have left included.
    """

    __slots__ = ("_returned", "first", "index", "length")

    def __init__(self, index: int, first: int, length: int, returned: deque[tuple[int, int, int]]):
        self.index, self.first, self.length, self._returned = index, first, length, returned

    def __del__(self) -> None:
        # In whatever thread; the states take it back in their own.
        self._returned.append((self.index, self.first, self.length))


class Change(NamedTuple):
    """What the table needs for more events of one user.

    Attributes:
        number: of the user in the step.
        had, opened: pages held before, and new ones.
        forked: a row of its own, for others have written behind the events seen.
        copied: a page of its own, for another row holds the open one too.
    """

    number: int
    had: int
    opened: int
    forked: bool
    copied: bool


class Numbers:
    """Numbers from 1 to ``end - 1``, given away and taken back; those come first that came back.

    Attributes:
        back: those that came back, the last of them first.
        next: the first that was never given away.
    """

    def __init__(self):
        self.back, self.next, self.end = list[int](), 1, 1

    def __len__(self) -> int:
        return len(self.back) + self.end - self.next

    def take(self, count: int) -> list[int]:
        keep = max(0, len(self.back) - count)
        taken = self.back[keep:][::-1]
        del self.back[keep:]
        fresh = count - len(taken)
        self.next += fresh
        return taken + list(range(self.next - fresh, self.next))


@dataclass(eq=False)
class Step:
    """Where new events go; made by :meth:`PagedStates.step`.

    Events of one user stand together, oldest first; each sees those before it.

    Attributes:
        events: E.
        size: events in a block, S.
        table: int32 [users, width], on the device; column c is the user's c-th block held.
        known: the table, on the host.
        host: ``rows`` and ``closing`` one after another, int32 [4 * E + C], on the host.
        moved: the same, on a device that is not the host.
    """

    events: int
    size: int
    table: Tensor
    known: np.ndarray
    host: np.ndarray
    moved: Tensor | None = None

    @cached_property
    def numbers(self) -> Tensor:
        """``host``, on the device."""
        return torch.from_numpy(self.host) if self.moved is None else self.moved

    @cached_property
    def rows(self) -> Tensor:
        """User, position, first block held and page of each event, int32 [4, E]."""
        return self.numbers[: 4 * self.events].view(4, self.events)

    @cached_property
    def closing(self) -> Tensor:
        """Which of the events complete their block, int32 [C]."""
        return self.numbers[4 * self.events :]

    @property
    def closes(self) -> bool:
        """Whether an event completes its block; of a step of fixed size any may."""
        return self.host.size > 4 * self.events

    @property
    def user(self) -> Tensor:
        """Row of each event's user in the table, int32 [E]."""
        return self.rows[0]

    @property
    def position(self) -> Tensor:
        """Position of each event in its whole history, int32 [E]."""
        return self.rows[1]

    @property
    def first_block(self) -> Tensor:
        """Number of the oldest block held of each event's user, int32 [E]."""
        return self.rows[2]

    @property
    def page(self) -> Tensor:
        """Page of each event's own block, int32 [E]."""
        return self.rows[3]

    @cached_property
    def users(self) -> np.ndarray:
        """On the host, ``user``."""
        return self.host[: self.events]

    @cached_property
    def columns(self) -> np.ndarray:
        """On the host, how many blocks are held before each event's own, [E]."""
        _, position, first, _ = self.host[: 4 * self.events].reshape(4, -1)
        return position // self.size - first

    @cached_property
    def bounds(self) -> np.ndarray:
        """On the host, where each user's events start, and E."""
        users = self.users
        return np.append(np.flatnonzero(np.diff(users, prepend=-1)), len(users))

    @cached_property
    def held(self) -> list[slice | Tensor]:
        """Pages of each user up to the last of its events, oldest first."""
        last = self.bounds[1:] - 1
        return [
            _consecutive(self.known[user, : column + 1], self.table.device)
            for user, column in zip(self.users[last], self.columns[last], strict=True)
        ]

    def enter_pages(self) -> None:
        """Write the events' pages to the table; on a CPU they are there, for it is the host's."""
        if self.table.device.type != "cpu":
            user, position, first, _ = self.rows.long()
            self.table[user, position // self.size - first] = self.page


@dataclass
class PagedLayer:
    """The pages of one layer.

    Attributes:
        layout: of the pages.
        pages: [P, G, S, 2d], an event's rotated key and its value side by side.
        block_keys: [P, G, d], of the pages whose block is complete; [0, G, d] without any.
    """

    layout: Layout
    pages: Tensor
    block_keys: Tensor

    @classmethod
    def empty(cls, layout: Layout, count: int) -> PagedLayer:
        """``count`` pages of zeros."""
        size, reach, heads, dim, *_ = layout
        return cls(
            layout,
            layout.zeros(count, heads, size, 2 * dim),
            layout.zeros(count if reach else 0, heads, dim),
        )

    def write(self, k: Tensor, v: Tensor, block_keys: Tensor, step: Step) -> None:
        """Put whole histories into their pages.

        Args:
            k, v: [T, G, d] rotated keys, and values, of the events of ``step``.
            block_keys: [J or more, G, d] of the complete blocks, history after history.
            step: where they go; there was nothing before it.
        """
        step.enter_pages()
        page, index = step.page.long(), step.position.long() % self.layout.block_size
        self.pages[page, :, index] = torch.cat((k, v), -1).to(self.pages.dtype)
        if self.layout.reach:
            complete = page[step.closing.long()]
            block_keys = block_keys[: len(complete)].to(self.block_keys.dtype)
            self.block_keys.index_copy_(0, complete, block_keys)

    def copy(self, source: int, target: int) -> None:
        """Write what page ``source`` holds to page ``target`` as well."""
        self.pages[target].copy_(self.pages[source])

    def grow(self, count: int) -> None:
        """Make it ``count`` pages."""
        self.pages = grown(self.pages, self.layout, count)
        if self.layout.reach:
            self.block_keys = grown(self.block_keys, self.layout, count)


def grown(x: Tensor, layout: Layout, *sizes: int) -> Tensor:
    """A copy with ``sizes`` as its first dimensions; zero where there was nothing."""
    larger = layout.zeros(*sizes, *x.shape[len(sizes) :], dtype=x.dtype)
    larger[tuple(slice(size) for size in x.shape[: len(sizes)])] = x
    return larger


def rows_at(x: Tensor, pages: np.ndarray | slice | Tensor) -> Tensor:
    """Rows of x at the pages; where they follow each other, a view."""
    if isinstance(pages, np.ndarray):
        pages = _consecutive(pages, x.device)
    return x[pages] if isinstance(pages, slice) else x.index_select(0, pages)


def _consecutive(pages: np.ndarray, device: torch.device) -> slice | Tensor:
    """Pages as a slice where they follow each other."""
    first = pages.item(0) if len(pages) else 0
    # Where the last is not, none need be looked at.
    ends = not len(pages) or pages.item(-1) == first + len(pages) - 1
    if ends and (pages == np.arange(first, first + len(pages), dtype=np.int32)).all():
        return slice(first, first + len(pages))
    return torch.from_numpy(pages).to(device)
