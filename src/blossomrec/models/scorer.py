"""What evaluation and recommendation ask of anything that ranks a catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from blossomrec.data.batch import Batch


class Scorer(Protocol):
    """Scores items as the next event of packed histories, a part of the catalogue at a time.

    Attributes:
        num_items: size of the catalogue.
        inputs: what of the events it takes, names of the arrays of a :class:`History`.
    """

    num_items: int
    inputs: ClassVar[tuple[str, ...]]

    @property
    def max_len(self) -> int:
        """How many of a history's last events are of use."""
        ...

    def queries(self, batch: Batch) -> Tensor:
        """What is to be known of each history: [B, ...], any shape after the first dimension."""
        ...

    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """float32 [B, stop - start], higher is better, of the items start .. stop-1."""
        ...
