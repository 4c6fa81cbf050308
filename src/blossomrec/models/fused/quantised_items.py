"""Vectors of items in 8 bits on a processor, which tell what may be among the best of a query.

A pass over them reads a quarter of the memory, and multiplies whole numbers. What quantising took
from each vector is measured, and by Cauchy and Schwarz it bounds the error of every score, the
rounding of sums in float32 included. An item whose upper bound is below the k-th best lower one is
not among the k best: what is left, a few more than k, is to be scored in float32.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from blossomrec.attention.backends.code_cache import NotBuiltError
from blossomrec.attention.backends.cpu.compiler import build
from blossomrec.attention.backends.cpu.library import SWITCH, fields_of

SOURCE = Path(__file__).parent / "source" / "quantised_items.cpp"
# Items side by side, as in the source.
PANEL = 16
# Candidates of a query: so many, and so many times k.
ROOM, ROOM_SHARE = 1_024, 2
# Queries that are looked at together, and candidates of theirs that all threads have room for.
QUERIES, ROOMS = 256, 1 << 23
# After so many queries the copy has cost no more than they did.
WORTH = 64
# Queries after which it is known whether bounds tell items apart.
TRIED = 64


class _Table(ctypes.Structure):
    """``struct Table`` of the source, which says what the fields are."""

    _fields_ = fields_of("vectors codes scales errors largest", "items size threads")


class _Search(ctypes.Structure):
    """``struct Search`` of the source, which says what the fields are."""

    _fields_ = fields_of(
        "codes scales errors queries offsets peaks seen_starts seen largest found counts",
        "items size count k room threads",
    )


class Offsets:
    """What is added to the scores of items; -inf leaves one out.

    Args:
        values: float32 [I], at least as many as there are quantised items.

    Attributes:
        bounded: whether scores have bounds with them, as they have not where one is not a number,
            or infinite but for -inf.
    """

    def __init__(self, values: Tensor):
        self.values = values.float().contiguous()
        self.bounded = bool((self.values < torch.inf).all())
        whole = len(values) // PANEL * PANEL
        self._peaks = self.values[:whole].view(-1, PANEL).amax(1)

    @property
    def addresses(self) -> tuple[int, int]:
        """Of the values, and of the largest of each panel of items."""
        return self.values.data_ptr(), self._peaks.data_ptr()


class QuantisedItems:
    """A copy of vectors, in 8 bits.

    Args:
        vectors: float32 [I, D], contiguous; I is a multiple of PANEL.

    Raises:
        NotBuiltError: there is no compiler.
        MemoryError: there is no memory for it.
        ValueError: a number is not finite, or too large.
    """

    def __init__(self, vectors: Tensor):
        self.num_items, self._size = vectors.shape
        panels, pairs = self.num_items // PANEL, -(-self._size // 2)
        self._codes = torch.zeros(panels, pairs, PANEL, 2, dtype=torch.int8)
        self._scales, self._errors = torch.empty(2, self.num_items).unbind()
        self._largest = torch.empty(1, dtype=torch.float64)
        tensors = vectors, self._codes, self._scales, self._errors, self._largest
        sizes = self.num_items, self._size, torch.get_num_threads()
        _run("blossom_quantise", _Table(*(each.data_ptr() for each in tensors), *sizes))

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""
        return sum(each.nbytes for each in (self._codes, self._scales, self._errors))

    @staticmethod
    def together(k: int) -> int:
        """How many queries to look at together for k items each."""
        return max(1, min(QUERIES, ROOMS // (torch.get_num_threads() * _room(k))))

    def candidates(
        self,
        queries: Tensor,
        k: int,
        offsets: Sequence[Offsets | None],
        seen: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Items that may be among the k best of each query, int32 [n, room], and how many.

        The number, int64 [n], is -1 where they do not fit, or the query is not a finite one of a
        fair size, and of all queries where there is no memory: nothing is known then.

        Args:
            queries: float32 [n, D].
            offsets: of each query, bounded.
            seen: items that a query must not have: where those of each query begin, and where the
                last end, int64 [n + 1], and their rows, int64, rising for each query.
        """
        queries, n = queries.contiguous(), len(queries)
        room = _room(k)
        found = torch.empty(n, room, dtype=torch.int32)
        counts = torch.empty(n, dtype=torch.int64)
        added, peaks = torch.tensor(
            [(0, 0) if each is None else each.addresses for each in offsets]
        ).T.contiguous()
        copy = self._codes, self._scales, self._errors
        tensors = *copy, queries, added, peaks, *seen, self._largest, found, counts
        sizes = self.num_items, self._size, n, k, room, torch.get_num_threads()
        try:
            _run("blossom_search", _Search(*(each.data_ptr() for each in tensors), *sizes))
        except MemoryError:
            counts.fill_(-1)
        return found, counts


class KeptCopy:
    """The quantised copy of a table of vectors, made where it pays, and anew when they changed.

    A change is known by the version that PyTorch counts of a tensor. What is written through
    ``.data``, or into its memory by others, is not seen: after it, :meth:`clear` is to be called.

    Several threads may ask; they wait while one makes the copy.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._start(None)

    def of(self, vectors: Tensor, queries: int) -> QuantisedItems | None:
        """The copy; None where there is none, or it has not been asked for often enough.

        Args:
            vectors: [I, D] on a processor.
            queries: for how many it is asked for now.
        """
        # Of what was made in inference mode no versions are counted.
        if vectors.dtype != torch.float32 or vectors.is_inference():
            return None
        vectors = vectors.detach()
        with self._lock:
            if not self._is_of(vectors):
                self._start((vectors, vectors._version))
            if self._asked <= WORTH:
                self._asked += queries
                if self._asked > WORTH:
                    self._copy = _made(vectors)
            return self._copy

    def make(self, vectors: Tensor) -> QuantisedItems | None:
        """As :meth:`of`, for who will ask often: it is made now."""
        return self.of(vectors, WORTH + 1)

    @property
    def nbytes(self) -> int:
        """Memory of the copy, 0 without one."""
        copy = self._copy
        return 0 if copy is None else copy.nbytes

    def tell(self, copy: QuantisedItems, queries: int, failed: int) -> None:
        """That so many were looked for in a copy, and of how many there were too many candidates.

        Where these are many, bounds do not tell the items apart, and there is no copy any more.
        """
        with self._lock:
            # Another thread may have found other vectors meanwhile.
            if copy is not self._copy:
                return
            self._tried, self._failed = self._tried + queries, self._failed + failed
            if self._tried >= TRIED and 4 * self._failed > self._tried:
                self._copy = None

    def clear(self) -> None:
        """Let it go, and the vectors."""
        with self._lock:
            self._start(None)

    def __reduce__(self) -> tuple[type[KeptCopy], tuple[()]]:
        # A model that is copied makes its own.
        return KeptCopy, ()

    def _start(self, of: tuple[Tensor, int] | None) -> None:
        self._of = of
        self._copy: QuantisedItems | None = None
        self._asked = self._tried = self._failed = 0

    def _is_of(self, vectors: Tensor) -> bool:
        if self._of is None:
            return False
        # The old vectors are held, so that no others can lie where they do.
        known, version = self._of
        same = known.data_ptr() == vectors.data_ptr() and known.shape == vectors.shape
        return same and vectors._version == version


def _room(k: int) -> int:
    """Candidates of a query that a thread has room for."""
    return ROOM + ROOM_SHARE * k


def _made(vectors: Tensor) -> QuantisedItems | None:
    try:
        return QuantisedItems(vectors.contiguous())
    except (ValueError, MemoryError, RuntimeError):
        # A RuntimeError: there is no compiler, or PyTorch has no memory.
        return None


def missing() -> str:
    """Why nothing is quantised here; empty where there is a library."""
    try:
        _library()
    except NotBuiltError as error:
        return str(error)
    return ""


def _run(name: str, call: _Table | _Search) -> None:
    status = getattr(_library(), name)(ctypes.byref(call))
    if status == 1:
        raise MemoryError(f"no memory to rank {call.items} items in 8 bits")
    if status:
        raise ValueError("a number of the vectors is not finite, or too large")


def _library() -> ctypes.CDLL:
    found = _find()
    if isinstance(found, str):
        raise NotBuiltError(found)
    return found


@cache
def _find() -> ctypes.CDLL | str:
    """The library, or why there is none: a compiler that failed once is not asked again."""
    if os.environ.get(SWITCH) == "0":
        return f"it is switched off by {SWITCH}=0"
    try:
        path = build(SOURCE)
        return ctypes.CDLL(str(path))
    except (NotBuiltError, OSError) as error:
        return str(error)
