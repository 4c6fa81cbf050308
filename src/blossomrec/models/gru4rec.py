"""GRU4Rec: a recurrent network over packed histories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from blossomrec.attention.buckets import Buckets
from blossomrec.config import ModelConfig
from blossomrec.models.features import Asked
from blossomrec.models.sequence import Encoded, SequenceModel

if TYPE_CHECKING:
    from blossomrec.data.batch import Batch


class GRU4Rec(SequenceModel):
    """Recommendation with a recurrent network (Hidasi et al., ICLR 2016).

    The recurrent state has ``inner_size`` numbers and is projected to ``hidden_size``. Options of
    attention have no effect.

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
        hidden = self.out(states)
        return hidden if self.request_inputs is not None else self._finished(hidden)

    def ask(self, kept: Tensor, asked: Asked | None) -> Tensor:
        if self.request_inputs is None:
            return kept
        assert asked is not None
        return self._finished(kept + self.request_inputs(*asked))

    def _finished(self, hidden: Tensor) -> Tensor:
        return self.final_norm(self.dropout(hidden))
