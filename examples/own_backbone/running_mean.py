"""A backbone in a package of its own: the mean of all events so far, beside the last one.

What a server keeps of a user is the sum of the embeddings and how many there were, so that one
more event costs the same however long the history is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blossomrec.attention.packing import histories, positions
from blossomrec.config import ModelConfig
from blossomrec.data.batch import Batch
from blossomrec.models import Encoded, SequenceModel


@dataclass(frozen=True)
class MeanState:
    """One user's history: the sum of its embedded events [D], their number, the last hidden state.

    ``query`` [1, D] and ``nbytes`` are what a server asks of a state.
    """

    total: Tensor
    length: int = 0
    last: Tensor | None = None

    @property
    def query(self) -> Tensor:
        if self.last is None:
            raise ValueError("the state has no events: there is nothing to score from")
        return self.last[None]

    @property
    def nbytes(self) -> int:
        return self.total.nbytes + (0 if self.last is None else self.last.nbytes)


class RunningMean(SequenceModel):
    """The last event and the mean of the history so far, through a small network.

    Args:
        config: the architecture; of it, the sizes, ``norm`` and ``dropout`` are used.
        num_items: size of the catalogue.
    """

    def __init__(self, config: ModelConfig, num_items: int):
        super().__init__(config, num_items)
        self.mix = nn.Sequential(
            nn.Linear(2 * config.hidden_size, config.inner_size),
            nn.GELU(),
            nn.Linear(config.inner_size, config.hidden_size),
        )

    def encode(
        self, batch: Batch, *, distil_rows: Tensor | None = None, keep_layers: bool = False
    ) -> Encoded:
        x, cu_seqlens = self.embed(batch), batch.cu_seqlens
        # In float64, as the sum runs on from one history into the next.
        running = torch.cat([x.new_zeros(1, x.shape[1]), x]).double().cumsum(0)
        before = running[cu_seqlens.long()[histories(cu_seqlens, len(x))]]
        counts = positions(cu_seqlens, len(x))[:, None] + 1
        return Encoded(self._mixed(x, ((running[1:] - before) / counts).to(x.dtype)))

    def start(self) -> MeanState:
        weight = self.item_embeddings.weight
        return MeanState(weight.new_zeros(weight.shape[1], dtype=torch.float64))

    @torch.no_grad()
    def extend_batch(
        self, batch: Batch, states: Sequence[MeanState]
    ) -> tuple[Tensor, list[MeanState]]:
        hidden, kept, counts = [], [], batch.cu_seqlens.diff().tolist()
        for new, state in zip(self.embed(batch).split(counts), states, strict=True):
            if not len(new):
                kept.append(state)
                continue
            totals = state.total + new.double().cumsum(0)
            lengths = state.length + torch.arange(1, len(new) + 1, device=new.device)[:, None]
            hidden.append(self._mixed(new, (totals / lengths).to(new.dtype)))
            # Copies: a view would keep the whole part alive.
            last = hidden[-1][-1].clone()
            kept.append(MeanState(totals[-1].clone(), state.length + len(new), last))
        return torch.cat([self.item_embeddings.weight[:0], *hidden]), kept

    def _mixed(self, x: Tensor, mean: Tensor) -> Tensor:
        return self.final_norm(x + self.dropout(self.mix(torch.cat([x, mean], dim=1))))
