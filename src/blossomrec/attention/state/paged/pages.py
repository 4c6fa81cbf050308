"""What one layer keeps of many users, and where a step of theirs goes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Row 0 of the table and page 0 are nobody's: what fills up a step of fixed size goes there.
NOBODY = 0


class OutOfPagesError(RuntimeError):
    """More pages are needed than the byte budget allows; dropping or trimming users gives some."""


@dataclass(frozen=True)
class Step:
    """Where the next event of each of B users goes; made by :meth:`PagedStates.step`.

    Attributes:
        table: int32 [users, width], on the device; column c is the user's c-th block held.
        rows: int32 [4, B], on the device; see the properties.
        closing: int32 [C], on the device: which of the B events complete their block.
        columns: int64 [B], on the host: blocks held before the event's own.
    """

    table: Tensor
    rows: Tensor
    closing: Tensor
    columns: Tensor

    @property
    def user(self) -> Tensor:
        """Row of each user in the table, int32 [B]."""
        return self.rows[0]

    @property
    def position(self) -> Tensor:
        """Position of each event in its whole history, int32 [B]."""
        return self.rows[1]

    @property
    def first_block(self) -> Tensor:
        """Number of each user's oldest block held, int32 [B]."""
        return self.rows[2]

    @property
    def page(self) -> Tensor:
        """Page of each event's own block, int32 [B]."""
        return self.rows[3]


@dataclass(frozen=True)
class Prefill:
    """Where the events of whole histories go; made by :meth:`PagedStates.prefill`.

    Attributes:
        users: row of each history's user, int64 [B], on the host.
        page: page of each event, int64 [T], histories one after another, on the device.
        index: of each event in its page, int64 [T], on the device.
        complete: page of each complete block, int64 [J], on the device.
    """

    users: np.ndarray
    page: Tensor
    index: Tensor
    complete: Tensor


@dataclass
class PagedLayer:
    """The pages of one layer.

    Attributes:
        pages: [P, G, S, 2d], an event's rotated key and its value side by side.
        block_keys: [P, G, d], of the pages whose block is complete.
        reach: keys that one block key is made of, ending where the block ends.
    """

    pages: Tensor
    block_keys: Tensor
    reach: int

    @property
    def block_size(self) -> int:
        """Events in a block, S."""
        return self.pages.shape[2]

    @property
    def page_bytes(self) -> int:
        """Bytes of one page and its block key."""
        return self.pages[0].nbytes + self.block_keys[0].nbytes

    def write(self, k: Tensor, v: Tensor, block_keys: Tensor, prefill: Prefill) -> None:
        """Put whole histories into their pages.

        Args:
            k, v: [T, G, d] rotated keys, and values.
            block_keys: [J or more, G, d] of the complete blocks, history after history.
            prefill: where they go.
        """
        events = torch.cat((k, v), -1).to(self.pages.dtype)
        self.pages[prefill.page, :, prefill.index] = events
        block_keys = block_keys[: len(prefill.complete)].to(self.block_keys.dtype)
        self.block_keys.index_copy_(0, prefill.complete, block_keys)

    def grow(self, count: int) -> None:
        """Make it ``count`` pages."""
        if count == len(self.pages):
            return
        self.pages = grown(self.pages, count)
        self.block_keys = grown(self.block_keys, count)


def grown(x: Tensor, *sizes: int) -> Tensor:
    """A copy with ``sizes`` as its first dimensions; zero where there was nothing."""
    with torch.inference_mode(False):
        larger = x.new_zeros(*sizes, *x.shape[len(sizes) :])
    larger[tuple(slice(size) for size in x.shape[: len(sizes)])] = x
    return larger
