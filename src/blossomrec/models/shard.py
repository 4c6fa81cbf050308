"""Models that have a part of the item table, or no numbers at all: which rows, and what these
begin with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from blossomrec.ranks import ALONE, Ranks

STD = 0.02
# Numbers that are drawn at a time where most of them are another rank's; the generator gives the
# same in pieces as at once where these are no fewer, and a multiple of this.
PIECE, FEWEST = 1 << 24, 16

_ranks: ContextVar[Ranks] = ContextVar("ranks", default=ALONE)
_fills: ContextVar[bool] = ContextVar("fills", default=True)


@contextmanager
def sharded(ranks: Ranks) -> Iterator[None]:
    """Within, a model that is built has the rows of the item table that are this rank's."""
    token = _ranks.set(ranks)
    try:
        yield
    finally:
        _ranks.reset(token)


@contextmanager
def unfilled() -> Iterator[None]:
    """Within, the item table of a model that is built is left as memory had it: it is read."""
    token = _fills.set(False)
    try:
        yield
    finally:
        _fills.reset(token)


@contextmanager
def without_numbers() -> Iterator[None]:
    """Within, a model that is built takes no memory: it has shapes alone, on the device "meta"."""
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """Random numbers of no memory, for which PyTorch would import its compiler, for seconds."""

    DRAWS = (
        *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_),
        *(torch.Tensor.normal_, torch.Tensor.uniform_),
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def held_rows(total: int) -> range:
    """Which of the rows of a table a model that is built has: all, but within :func:`sharded`."""
    return _ranks.get().rows(total)


def start_table(total: int, size: int) -> nn.Embedding:
    """The rows of :func:`held_rows`, with the numbers that they have in the whole table."""
    held = held_rows(total)
    if not _fills.get():
        return nn.Embedding(len(held), size, _weight=torch.empty(len(held), size))
    if len(held) == total:
        table = nn.Embedding(total, size)
        nn.init.normal_(table.weight, std=STD)
        return table
    weight = torch.empty(len(held), size)
    # The whole table draws twice: what PyTorch begins with, and what takes its place.
    for _ in range(2):
        _draw(weight.view(-1), total * size, held.start * size)
    return nn.Embedding(len(held), size, _weight=weight)


def _draw(kept: torch.Tensor, total: int, first: int) -> None:
    """Draw ``total`` numbers and keep those from ``first`` on."""
    start = 0
    while start < total:
        stop = start + PIECE
        if total - stop < FEWEST:
            stop = total
        drawn = torch.empty(stop - start).normal_(std=STD)
        low, high = max(start, first), min(stop, first + len(kept))
        if low < high:
            kept[low - first : high - first] = drawn[low - start : high - start]
        start = stop
