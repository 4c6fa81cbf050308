"""BERT4Rec: a bidirectional Transformer that fills in masked events."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from blossomrec.attention.packing import histories, positions
from blossomrec.config import ModelConfig, RunConfig
from blossomrec.data.batches import ClozeBatches
from blossomrec.data.batching.importance import target_importance
from blossomrec.models.sequence import batch_sizes
from blossomrec.models.transformer import TransformerModel

if TYPE_CHECKING:
    import numpy as np

    from blossomrec.data.batch import Batch
    from blossomrec.data.log import EventLog


class BERT4Rec(TransformerModel):
    """Sequential recommendation by masked events (Sun et al., CIKM 2019).

    A masked event has the item row I, which the catalogue does not contain. The next item is
    scored at a mask that is put after the history.

    Args:
        config: the architecture.
        num_items: size of the catalogue, I.
    """

    causal = False
    captured = True

    def __init__(self, config: ModelConfig, num_items: int):
        super().__init__(config, num_items, causal=self.causal, extra_rows=1)

    @classmethod
    def training_batches(
        cls, log: EventLog, train_end: np.ndarray, config: RunConfig
    ) -> ClozeBatches:
        share = config.training.mask_probability
        return ClozeBatches(
            log,
            train_end,
            mask_probability=share,
            inputs=cls.inputs_for(config),
            importance=target_importance(log, config.training),
            **batch_sizes(config),
        )

    @property
    def mask_item(self) -> int:
        """Item row of a masked event."""
        return self.first_extra

    @torch.no_grad()
    def queries(self, batch: Batch) -> Tensor:
        """State at a mask behind the last ``max_len - 1`` events of each history, [B, D]."""
        masked = append_item(batch, self.mask_item, self.config.max_len - 1)
        return self.encode(masked).hidden[masked.last_rows]


def append_item(batch: Batch, item: int, longest: int) -> Batch:
    """Cut packed histories to their last ``longest`` events and put one more after each.

    The event that is added has the item row ``item`` and, as its time and kind, the moment and the
    kind for which is recommended. Nothing is known of its context; its user is that of the others.
    """
    lengths = batch.cu_seqlens.long().diff().clamp(max=longest) + 1
    appended = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    total = int(appended[-1])
    history, position = histories(appended, total), positions(appended, total)
    before_end = lengths[history] - 1 - position  # 0 at the new item
    source = batch.cu_seqlens[1:].long()[history] - before_end.clamp(min=1)
    longest = min(batch.max_length, longest) + 1
    events = batch.take(source, appended, longest)
    new, changed = before_end == 0, {}
    if events.times is not None and events.asked is not None:
        # A mask has the time of the event that it stands for.
        known = torch.where(events.asked < 0, events.times, events.asked)
        changed["times"] = torch.where(new, known, events.times)
    if events.kinds is not None:
        wanted = 0 if events.asked_kinds is None else events.asked_kinds
        changed["kinds"] = torch.where(new, wanted, events.kinds)
    if events.context is not None:
        changed["context"] = events.context.masked_fill(new[:, None], torch.nan)
    return replace(events, items=torch.where(new, item, events.items), **changed)
