"""What a model keeps of one user between requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blossomrec.attention import AttentionState
from blossomrec.attention.state import state_of
from blossomrec.errors import DataError


@dataclass(frozen=True)
class ModelState:
    """One user's encoded history, made by ``start`` of a model and grown by its ``extend``.

    It is a value: whatever is done with it gives another one. It belongs to the weights that it
    was made with, and to the backbone's layout; other weights need the events again.

    Attributes:
        kept: keys, values and block keys of all layers.
        last: [D], the hidden state at the last event; None without events.
        seconds: time of the last event, where the model sees times; -1 where it is not known.
    """

    kept: AttentionState
    last: Tensor | None = None
    seconds: int = -1

    @property
    def layers(self) -> tuple[AttentionState, ...]:
        """Of each layer, keys, values and block keys."""
        return tuple(replace(self.kept, number=n) for n in range(len(self.kept.states.layers)))

    @property
    def length(self) -> int:
        """Events of the history so far, those that have left included."""
        return self.kept.length

    @property
    def nbytes(self) -> int:
        """Bytes of the pages, and of the last hidden state; see :class:`AttentionState`."""
        return self.kept.nbytes + (0 if self.last is None else self.last.nbytes)

    @property
    def query(self) -> Tensor:
        """What the next item is scored from, [1, D]: ``model.scores(state.query, 0, I)``.

        For a model that sees the moment for which is recommended, what its ``ask`` makes that of.

        Raises:
            DataError: there are no events yet.
        """
        if self.last is None:
            raise DataError("the state has no events: there is nothing to score from")
        return self.last[None]

    def trim(self, keep: int) -> ModelState:
        """The state without its oldest blocks of events; see :meth:`AttentionState.trim`.

        The last ``keep`` events stay; what has been computed from older ones while they were there
        stays as it is.
        """
        return replace(self, kept=self.kept.trim(keep))

    def to_dict(self) -> dict[str, Tensor]:
        """Flat and contiguous tensors, as safetensors wants them."""
        tensors = {
            f"layers.{number}.{name}": tensor
            for number, layer in enumerate(self.layers)
            for name, tensor in layer.to_dict().items()
        }
        if self.seconds >= 0:
            tensors["seconds"] = torch.tensor(self.seconds)
        return tensors if self.last is None else tensors | {"last": self.last.clone()}

    @classmethod
    def from_dict(cls, tensors: Mapping[str, Tensor]) -> ModelState:
        """The state that :meth:`to_dict` described.

        Raises:
            DataError: a tensor is missing or does not fit the others.
        """
        by_layer: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name in ("last", "seconds"):
                continue
            folder, _, rest = name.partition(".")
            number, _, part = rest.partition(".")
            if folder != "layers" or not number.isdecimal():
                raise DataError(f"the model state has an unknown tensor {name!r}")
            by_layer.setdefault(int(number), {})[part] = tensor
        if sorted(by_layer) != list(range(len(by_layer))) or not by_layer:
            raise DataError(f"the model state has layers {sorted(by_layer)}")
        try:
            kept = state_of([by_layer[number] for number in sorted(by_layer)])
        except ValueError as error:
            raise DataError(str(error)) from error
        last = tensors.get("last")
        if (last is None) != (kept.length == 0):
            raise DataError(
                f"the model state has {kept.length} events, the last hidden state is "
                f"{'missing' if last is None else 'there'}"
            )
        return cls(kept, last, int(tensors.get("seconds", -1)))
