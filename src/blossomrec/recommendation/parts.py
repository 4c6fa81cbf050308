"""The work of a job: for each part of its users the recommendations, written as a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from blossomrec.recommendation.output import Output
from blossomrec.recommendation.ranked_users import Ranked, UserRanker

# The users of a part: the number of the first, and that after the last.
Users = tuple[int, int]
# Told how many more users are done.
Advance = Callable[[int], None]


@dataclass(frozen=True)
class PartWriter:
    """Recommends to the users of parts of a job, and writes that.

    Attributes:
        output: where the parts lie.
        make_ranker: gives what ranks; called with the first part.
        as_frame: recommendations by external ids.
    """

    output: Output
    make_ranker: Callable[[], UserRanker]
    as_frame: Callable[[Ranked], pl.DataFrame]

    @cached_property
    def ranker(self) -> UserRanker:
        return self.make_ranker()

    def write(self, part: Users, advance: Advance) -> None:
        """Write a part."""
        found = list[Ranked]()
        for each in self.ranker.ranked(self.output.job.users[slice(*part)]):
            found.append(each)
            advance(each.asked)
        self.output.write_part(self.as_frame(Ranked.join(found)), part)

    def assist(self) -> None:
        """Take part in what other ranks write, without users of one's own."""
        for _ in self.ranker.ranked(self.output.job.users[:0]):
            pass
