"""What a model sees besides items, as sums of embeddings: any shape, nothing scattered."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blossomrec.models.event_inputs import (
    FIRST_WEEKDAY,
    HOUR,
    HOURS,
    WEEKDAYS,
    EventInputs,
    Seen,
    bucket_starts,
)
from blossomrec.models.features import UserContent


class Lookups(nn.Module):
    """What :class:`EventInputs` gives of events or requests of any shape, [..., D].

    What is known of users is not part of it; see :func:`user_vectors`.
    """

    gaps: Tensor

    def __init__(self, inputs: EventInputs):
        super().__init__()
        self.inputs = inputs
        # Its own: what is cached while a graph is traced is no tensor.
        self.register_buffer("gaps", bucket_starts(torch.device("cpu")), persistent=False)

    def forward(self, seen: Seen) -> Tensor:
        """Tensors of ``seen`` are [...], the context [..., C]."""
        inputs = self.inputs
        rows = list[Tensor]()
        if inputs.gap and seen.gap is not None:
            rows.append(torch.bucketize(seen.gap, self.gaps, right=True))
        if inputs.clock and seen.seconds is not None:
            rows += self._clock(seen.seconds)
        if inputs.kinds is not None and seen.kinds is not None:
            rows.append(seen.kinds + inputs.starts[2])
        found = [F.embedding(each, inputs.embeddings.weight) for each in rows]
        if seen.context is not None:
            found += self._context(seen.context)
        return torch.stack(found).sum(0)

    def _clock(self, seconds: Tensor) -> list[Tensor]:
        # Not ``div`` rounded down, which ONNX does in float32: that has no room for all seconds.
        hours = seconds // HOUR + FIRST_WEEKDAY * HOURS
        days = hours // HOURS % WEEKDAYS
        return [self.inputs.starts[1] + hours % HOURS, self.inputs.starts[1] + HOURS + days]

    def _context(self, context: Tensor) -> list[Tensor]:
        inputs, weight, found = self.inputs, self.inputs.embeddings.weight, list[Tensor]()
        if len(inputs.few_columns):
            few = context.index_select(-1, inputs.few_columns).nan_to_num(0.0).long()
            found.append(F.embedding(few + inputs.offsets, weight).sum(-2))
        if len(inputs.number_columns):
            mean, deviation = inputs.scales.unbind(1)
            values = (context.index_select(-1, inputs.number_columns) - mean) / deviation
            start = inputs.starts[-1]
            rows = weight[start : start + len(inputs.number_columns)]
            found.append(values.nan_to_num(0.0) @ rows)
        for column, table in zip(inputs.many, inputs.of_many, strict=True):
            found.append(table(context[..., column].nan_to_num(0.0).long()))
        return found


def sees_events(inputs: EventInputs) -> bool:
    """Whether there is anything besides users."""
    context = len(inputs.few_columns) + len(inputs.number_columns) + len(inputs.many)
    return inputs.gap or inputs.clock or inputs.kinds is not None or context > 0


@torch.no_grad()
def user_vectors(inputs: EventInputs, content: UserContent, users: int) -> Tensor:
    """What is added for each user of the table, [U + 1, D]; the last row is for all others."""
    rows = torch.arange(users + 1)
    rows[-1] = -1
    vectors = content(rows) @ inputs.embeddings.weight[-inputs.users :]
    return vectors + content.vectors(rows) if len(content.of_many) else vectors
