"""States of one size, however long a history: sums and windows that a few tensors hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blossomrec.attention.packing import histories, positions
from blossomrec.data.batch import Batch
from blossomrec.errors import DataError
from blossomrec.models.event_parts import is_one_each

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Continued:
    """New events of users whose earlier ones are known by what was kept of them.

    Attributes:
        cu_seqlens: int32 [B+1], where each user's new events start, of which there may be none.
        max_length: most new events of a user.
        lengths: int64 [B], events before these.
        position: int64 [E], of each event in its whole history.
    """

    cu_seqlens: Tensor
    max_length: int
    lengths: Tensor
    position: Tensor

    @property
    def is_one_each(self) -> bool:
        """Whether each user has one event."""
        return self.max_length == 1 and len(self.position) == len(self.lengths)


class RecurrentAttention(nn.Module):
    """Base of causal layers that keep of a user a few tensors whose size does not grow."""

    def initial(self, users: int) -> Tensors:
        """What is kept of users without events, each [B, ...].

        Raises:
            ValueError: the attention is bidirectional, so that a new event changes all old ones.
        """
        raise NotImplementedError

    def extend_recurrent(
        self, x: Tensor, given: Continued, kept: Tensors, rotary: Tensor | None = None
    ) -> tuple[Tensor, Tensors]:
        """Attend from new events, [E, D] to [E, D], and what is kept after them.

        Args:
            x: the events, user after user.
            given: whose they are.
            kept: of each user, as of :meth:`initial`.
            rotary: [E, 2, pairs], angles that queries and keys are rotated by; None for those of
                their positions.
        """
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class RecurrentState:
    """One user's encoded history in tensors of one size: what a recurrent model keeps.

    It is a value: extending it gives another one. It belongs to the weights it was made with.

    Attributes:
        kept: tensors of all layers.
        length: events of the history so far.
        last: [D], the hidden state at the last event; None without events.
        seconds: time of the last event, where the model sees times; -1 where it is not known.
    """

    kept: Tensors
    length: int = 0
    last: Tensor | None = None
    seconds: int = -1

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, and of the last hidden state."""
        return sum(x.nbytes for x in self.kept) + (0 if self.last is None else self.last.nbytes)

    @property
    def query(self) -> Tensor:
        """What the next item is scored from, [1, D]; see :attr:`ModelState.query`.

        Raises:
            DataError: there are no events yet.
        """
        if self.last is None:
            raise DataError("the state has no events: there is nothing to score from")
        return self.last[None]

    def trim(self, keep: int) -> RecurrentState:
        """The state itself: what it has summed up cannot leave, and takes no room."""
        return self

    def to_dict(self) -> dict[str, Tensor]:
        """Flat and contiguous tensors, as safetensors wants them."""
        tensors = {f"kept.{number}": x.clone() for number, x in enumerate(self.kept)}
        tensors |= {"length": torch.tensor(self.length), "seconds": torch.tensor(self.seconds)}
        return tensors if self.last is None else tensors | {"last": self.last.clone()}

    @classmethod
    def from_dict(cls, tensors: Mapping[str, Tensor]) -> RecurrentState:
        """The state that :meth:`to_dict` described.

        Raises:
            DataError: a tensor is missing.
        """
        numbers = [name for name in tensors if name.startswith("kept.")]
        names = [f"kept.{number}" for number in range(len(numbers))]
        missing = [name for name in (*names, "length", "seconds") if name not in tensors]
        if missing:
            raise DataError(f"the model state has no {', '.join(missing)}")
        length, last = int(tensors["length"]), tensors.get("last")
        if (last is None) != (length == 0):
            raise DataError(
                f"the model state has {length} events, the last hidden state is "
                f"{'missing' if last is None else 'there'}"
            )
        kept = tuple(tensors[name] for name in names)
        return cls(kept, length, last, int(tensors["seconds"]))


# Of a batch of new events, whose they are, what is kept of the users (each [B, ...]) and the time
# of the event before each user's first: hidden states [E, D], and what is kept after them.
Extend = Callable[[Batch, Continued, list[Tensor], Tensor | None], tuple[Tensor, Sequence[Tensor]]]


@torch.no_grad()
def extend_together(
    batch: Batch, states: Sequence[RecurrentState], start: RecurrentState, extend: Extend
) -> tuple[Tensor, list[RecurrentState]]:
    """Encode the next events of several users; see :meth:`SequenceModel.extend_batch`.

    Args:
        start: what the model keeps of a user without events.
        extend: encodes the events.

    Raises:
        ValueError: there are not as many states as histories, or one is another model's.
    """
    if len(states) != batch.num_histories or not states:
        raise ValueError(f"{len(states)} states for {batch.num_histories} histories")
    shapes = [x.shape for x in start.kept]
    for number, state in enumerate(states):
        found = [x.shape for x in state.kept]
        if found != shapes:
            raise ValueError(f"state {number} is that of another model: {found}, not {shapes}")
    kept = [torch.stack(each) for each in zip(*(state.kept for state in states), strict=True)]
    before, moments_after = moments(batch, states)
    lengths = torch.tensor([state.length for state in states], device=batch.items.device)
    hidden, after = extend(batch, continued(batch, lengths), kept, before)
    counts = batch.cu_seqlens.diff().tolist()
    lasts = [
        new[-1].clone() if count else state.last
        for new, count, state in zip(hidden.split(counts), counts, states, strict=True)
    ]
    # A view would keep the others' numbers alive.
    own = [tuple(x[number].clone() for x in after) for number in range(len(states))]
    grown = [state.length + count for state, count in zip(states, counts, strict=True)]
    every = zip(own, grown, lasts, moments_after, strict=True)
    return hidden, [RecurrentState(*each) for each in every]


def continued(batch: Batch, lengths: Tensor) -> Continued:
    """New events behind ``lengths`` [B] earlier ones."""
    bounds, total = batch.cu_seqlens, len(batch.items)
    if is_one_each(batch):
        return Continued(bounds, 1, lengths, lengths)
    position = positions(bounds, total) + lengths[histories(bounds, total)]
    return Continued(bounds, batch.max_length, lengths, position)


def moments(batch: Batch, states: Sequence[Any]) -> tuple[Tensor | None, list[int]]:
    """Times of the last events before and after a batch; before it None without times."""
    known = [state.seconds for state in states]
    if batch.times is None:
        return None, known
    if is_one_each(batch):
        return torch.tensor(known, device=batch.times.device), batch.times.tolist()
    lengths, last = batch.cu_seqlens.diff().tolist(), batch.last_rows.clamp(min=0)
    after = batch.times[last].tolist() if len(batch.items) else known
    after = [new if count else old for new, count, old in zip(after, lengths, known, strict=True)]
    return torch.tensor(known, device=batch.times.device), after
