"""The engine of ranks who share the items of a model, and compute parts of a job together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blossomrec.ranks import Ranks

if TYPE_CHECKING:
    from blossomrec.recommendation.part_engines import PartsWritten
    from blossomrec.recommendation.parts import Advance, PartWriter, Users


@dataclass(frozen=True)
class RanksEngine:
    """Each rank writes parts of its own, as many at a time as there are ranks.

    All call it. Whose parts are left is for rank 0 to say, and where they are written is to be
    found by all ranks under the same path.

    Attributes:
        ranks: who share the items.
    """

    ranks: Ranks

    def __call__(
        self, writer: PartWriter, parts: Sequence[Users], advance: Advance
    ) -> PartsWritten:
        ranks, parts = self.ranks, self.ranks.told(list(parts))
        for start in range(0, len(parts), ranks.size):
            some = parts[start : start + ranks.size]
            if ranks.rank < len(some):
                writer.write(some[ranks.rank], advance)
            else:
                writer.assist()
            # Nobody takes a part for written before it is.
            ranks.agree(0)
            others = (part for rank, part in enumerate(some) if rank != ranks.rank)
            advance(sum(stop - first for first, stop in others))
            yield from some
