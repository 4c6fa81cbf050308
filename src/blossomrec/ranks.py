"""The processes that train one model together, and what they tell each other.

Ranks are torchrun's: whoever starts them says who they are in the environment. One process alone is
rank 0 of 1, which has nothing to tell.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from blossomrec.errors import BlossomRecError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class RankLostError(BlossomRecError):
    """Another rank ended in the middle of something that all do together."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """N processes and which of them this one is; alone by default.

    Every method is called by all ranks, in the same order. Tensors lie on the device of the
    training unless it is said otherwise.

    Attributes:
        rank: of this process, from 0.
        size: how many there are, N.
        local: number of this process on its machine, which is that of its GPU.
        aside: a group for what is done by another thread meanwhile; None alone.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    aside: Any = None

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def rows(self, total: int, rank: int | None = None) -> range:
        """Which of ``total`` rows a rank has, this one by default: as many as every other, but for
        the last ones.

        >>> [list(Ranks(rank, 2).rows(5)) for rank in range(2)]
        [[0, 1, 2], [3, 4]]
        """
        each = -(-total // self.size)
        start = (self.rank if rank is None else rank) * each
        return range(min(start, total), min(start + each, total))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within something that all do, say plainly that another rank is gone, which is why most
        of it fails: RankLostError."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise RankLostError(f"rank {self.rank} lost another rank: {reason}") from error

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """The largest that any rank gives of each number."""
        if self.alone:
            return numbers
        import torch
        import torch.distributed as dist

        shared = torch.tensor(numbers, dtype=torch.int64)
        with self.together():
            dist.all_reduce(shared, dist.ReduceOp.MAX)
        return tuple(shared.tolist())

    def told(self, value: T, *, aside: bool = False) -> T:
        """What rank 0 gives, a value of plain types."""
        return self.gathered(value, aside=aside)[0]

    def gathered(self, value: T, *, aside: bool = False) -> list[T]:
        """What each rank gives, of plain types and arrays, in the order of ranks."""
        if self.alone:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with self.together():
            dist.all_gather_object(found, value, self.aside if aside else None)
        return found

    def in_turn(self, opened: Callable[[], T]) -> T:
        """What is opened by rank 0 first and then by all others."""
        found = opened() if self.first else None
        self.agree(0)
        return opened() if found is None else found

    @contextmanager
    def said_once(self) -> Iterator[None]:
        """Within something that all do alike, warnings are those of rank 0."""
        if self.first:
            yield
            return
        with warnings.catch_warnings(action="ignore"):
            yield

    def in_step(self, each: Iterable[T]) -> Iterator[T | None]:
        """What a rank has, one after another, as long as any has more; None where this one has
        not."""
        own = iter(each)
        while True:
            found = next(own, None)
            if not self.agree(int(found is not None))[0]:
                return
            yield found

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all ranks, [N * n, ...] of [n, ...], the same n everywhere."""
        if self.alone:
            return x
        out = x.new_empty(self.size * len(x), *x.shape[1:])
        with self.together():
            _named("all_gather_single", "all_gather_into_tensor")(out, x.contiguous())
        return out

    def gather_later(self, x: Tensor) -> Callable[[], Tensor]:
        """As :meth:`gather`, under way until what is given is called."""
        out = x.new_empty(self.size * len(x), *x.shape[1:])
        gather = _named("all_gather_single", "all_gather_into_tensor")
        with self.together():
            work = gather(out, x, async_op=True)

        def gathered() -> Tensor:
            with self.together():
                work.wait()
            return out

        return gathered

    def gather_pieces(self, x: Tensor) -> list[Tensor]:
        """The rows of each rank, [n, ...] of [n, ...], of which there may be any number."""
        if self.alone:
            return [x]
        import torch

        sizes = self.gather(torch.tensor([len(x)], device=x.device)).tolist()
        padded = x.new_zeros(max(1, *sizes), *x.shape[1:])
        padded[: len(x)] = x
        pieces = self.gather(padded).split(len(padded))
        return [piece[:size] for piece, size in zip(pieces, sizes, strict=True)]

    def sum_(self, x: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.alone:
            return x
        import torch.distributed as dist

        with self.together():
            dist.all_reduce(x)
        return x

    def sum_to_owners(self, x: Tensor) -> Tensor:
        """Of the sum over all ranks, [N * n, ...], the rows of this one, [n, ...]."""
        out = x.new_empty(len(x) // self.size, *x.shape[1:])
        with self.together():
            _named("reduce_scatter_single", "reduce_scatter_tensor")(out, x.contiguous())
        return out

    def exchange(
        self,
        x: Tensor,
        sent: Sequence[int] | None = None,
        received: Sequence[int] | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """The rows that others send to this rank, in the order of ranks.

        Args:
            x: rows for rank 0, for rank 1, ...
            sent: how many go to each rank; as many to each without it, and to every other rank.
            received: how many come from each, given where ``sent`` is.
            out: where they go; a new tensor without it.
        """
        import torch.distributed as dist

        arriving = None if received is None else list(received)
        leaving = None if sent is None else list(sent)
        if out is None:
            out = x.new_empty(len(x) if arriving is None else sum(arriving), *x.shape[1:])
        with self.together():
            dist.all_to_all_single(out, x.contiguous(), arriving, leaving)
        return out

    def fetch(self, held: Tensor, total: int, wanted: Tensor) -> Tensor:
        """Some of ``total`` rows of which each rank has those of :meth:`rows`, [K, ...].

        Args:
            held: the own rows, [n, ...].
            wanted: int64 [K], any rows of the whole in any order; each rank wants its own.
        """
        if self.alone:
            return held[wanted]
        import torch

        rising, places = wanted.unique(return_inverse=True)
        starts = [self.rows(total, rank).start for rank in range(self.size)]
        edges = torch.tensor([*starts, total], device=wanted.device)
        asked = torch.searchsorted(rising, edges).diff()
        each = [1] * self.size
        sent, received = asked.tolist(), self.exchange(asked, each, each).tolist()
        rows = self.exchange(rising, sent, received) - starts[self.rank]
        return self.exchange(held[rows], received, sent)[places]

    def pieces(self, x: Tensor, sizes: Sequence[int], rows: int) -> Iterator[Tensor]:
        """On rank 0 the rows of all ranks one after another, at most ``rows`` at a time; nothing
        on the others. All lie in host memory.

        Args:
            x: [n, ...], the rows of this rank.
            sizes: n of each rank.
        """
        import torch.distributed as dist

        if self.first:
            yield from x.split(rows)
        for rank in range(1, self.size):
            for start in range(0, sizes[rank], rows):
                count = min(rows, sizes[rank] - start)
                with self.together():
                    if self.rank == rank:
                        dist.send(x[start : start + count].contiguous(), 0)
                    elif self.first:
                        piece = x.new_empty(count, *x.shape[1:])
                        dist.recv(piece, rank)
                        yield piece


ALONE = Ranks()


def _named(now: str, before: str) -> Callable[..., Any]:
    """A collective by the name that it has, or had before PyTorch 2.13."""
    import torch.distributed as dist

    return getattr(dist, now, None) or getattr(dist, before)


def launched() -> bool:
    """Whether torchrun, or what it is made of, started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


@contextmanager
def open_ranks(device: str) -> Iterator[Ranks]:
    """Within, the ranks that torchrun started; this process alone where it did not.

    Where they are open already, they stay open.

    Args:
        device: "cpu" or "cuda", of which each gets its own.
    """
    if not launched():
        yield ALONE
        return
    global _open
    if _open is not None:
        yield _open
        return
    import torch
    import torch.distributed as dist

    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    try:
        aside = dist.new_group(backend="gloo")
        _open = Ranks(dist.get_rank(), dist.get_world_size(), local, aside)
        yield _open
    finally:
        _open = None
        dist.destroy_process_group()


_open: Ranks | None = None
