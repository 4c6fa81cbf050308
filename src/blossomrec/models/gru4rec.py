"""GRU4Rec: a recurrent network over packed histories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from blossomrec.attention.buckets import Buckets
from blossomrec.config import ModelConfig
from blossomrec.models.event_inputs import Asked
from blossomrec.models.recurrent import Continued, RecurrentState, extend_together
from blossomrec.models.sequence import Encoded, SequenceModel

if TYPE_CHECKING:
    from blossomrec.data.batch import Batch


class GRU4Rec(SequenceModel):
    """Recommendation with a recurrent network (Hidasi et al., ICLR 2016).

    The recurrent state has ``inner_size`` numbers and is projected to ``hidden_size``; it is what
    is kept of a user. Options of attention have no effect.

    Args:
        config: the architecture.
        num_items: size of the catalogue.
    """

    takes_features = True

    def __init__(self, config: ModelConfig, num_items: int):
        super().__init__(config, num_items)
        self.gru = nn.GRU(
            config.hidden_size, config.inner_size, num_layers=config.layers, batch_first=True
        )
        self.out = nn.Linear(config.inner_size, config.hidden_size)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def encode_open(self, batch: Batch) -> Tensor:
        return self._encoded(batch, self.item_vectors())

    def encode(
        self, batch: Batch, *, distil_rows: Tensor | None = None, keep_layers: bool = False
    ) -> Encoded:
        vectors = self.item_vectors()
        kept, asked = self._encoded(batch, vectors), self.asked(batch)
        catalogue = None if self.content is None else self.output_weight(vectors)
        return Encoded(self.ask(kept, asked), catalogue=catalogue, asked=asked)

    def _encoded(self, batch: Batch, vectors: Tensor) -> Tensor:
        # Rectangles rather than PyTorch's packed sequences, whose backward pass on a CPU touches
        # every row at every step.
        buckets = Buckets.of(batch.cu_seqlens, len(batch.items), batch.max_length)
        # The recurrence stays in float32: rounding would add up along a history.
        with torch.autocast(batch.items.device.type, enabled=False):
            groups = buckets.pad(self.embedded(batch, vectors).float())
            states = buckets.unpad([self.gru(group)[0] for group in groups])
        return self._open(states)

    def _open(self, states: Tensor) -> Tensor:
        """Of states [T, inner], finished unless something may be asked for."""
        hidden = self.out(states)
        return hidden if self.request_inputs is not None else self._finished(hidden)

    def start(self) -> RecurrentState:
        """The state of a user without events."""
        weight = self.out.weight
        return RecurrentState((weight.new_zeros(self.gru.num_layers, self.gru.hidden_size),))

    def extend_batch(
        self, batch: Batch, states: Sequence[RecurrentState]
    ) -> tuple[Tensor, list[RecurrentState]]:
        if self.training:
            raise RuntimeError("the model is in training mode: call eval() before extending states")
        return extend_together(batch, states, self.start(), self._extend)

    def _extend(
        self, batch: Batch, given: Continued, kept: list[Tensor], before: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states of new events behind states [B, layers, inner], and those after them."""
        with torch.autocast(batch.items.device.type, enabled=False):
            counts = given.cu_seqlens.diff().cpu().long()
            x = self.embedded(batch, before=before).float().split(counts.tolist())
            some = counts.nonzero()[:, 0]
            packed = pack_sequence([x[number] for number in some.tolist()], enforce_sorted=False)
            state, users = kept[0].clone(), some.to(batch.items.device)
            out, after = self.gru(packed, state[users].transpose(0, 1).contiguous())
            state[users] = after.transpose(0, 1)
        return self._open(torch.cat(unpack_sequence(out))), [state]

    def ask(self, kept: Tensor, asked: Asked | None) -> Tensor:
        if self.request_inputs is None:
            return kept
        assert asked is not None
        return self._finished(kept + self.request_inputs(*asked))

    def _finished(self, hidden: Tensor) -> Tensor:
        return self.final_norm(self.dropout(hidden))
