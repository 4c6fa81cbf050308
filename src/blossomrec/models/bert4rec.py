"""BERT4Rec: a bidirectional Transformer that fills in masked events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from blossomrec.attention.packing import histories, positions
from blossomrec.config import ModelConfig, RunConfig
from blossomrec.data.batches import ClozeBatches
from blossomrec.models.sequence import batch_sizes
from blossomrec.models.transformer import TransformerModel

if TYPE_CHECKING:
    import numpy as np

    from blossomrec.data.batches import Batch
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

    def __init__(self, config: ModelConfig, num_items: int):
        super().__init__(config, num_items, causal=self.causal, extra_rows=1)

    @classmethod
    def training_batches(
        cls, log: EventLog, train_end: np.ndarray, config: RunConfig
    ) -> ClozeBatches:
        share = config.training.mask_probability
        return ClozeBatches(log, train_end, mask_probability=share, **batch_sizes(config))

    @property
    def mask_item(self) -> int:
        """Item row of a masked event."""
        return self.num_items

    @torch.no_grad()
    def queries(self, batch: Batch) -> Tensor:
        """State at a mask behind the last ``max_len - 1`` events of each history, [B, D]."""
        longest = self.config.max_len - 1
        items, cu_seqlens = append_item(batch.items, batch.cu_seqlens, self.mask_item, longest)
        encoded = self.encode(items, cu_seqlens, min(batch.max_length, longest) + 1)
        return encoded.hidden[cu_seqlens[1:].long() - 1]


def append_item(
    items: Tensor, cu_seqlens: Tensor, item: int, longest: int
) -> tuple[Tensor, Tensor]:
    """Cut packed histories to their last ``longest`` events and put ``item`` after each.

    Args:
        items: int64 [T].
        cu_seqlens: int32 [B+1].
        item: item row to append.
        longest: events of each history that are kept.

    Returns:
        items, int64 [T'], and cu_seqlens, int32 [B+1], of the new batch.
    """
    lengths = cu_seqlens.long().diff().clamp(max=longest) + 1
    appended = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    total = int(appended[-1])
    history, place = histories(appended, total), positions(appended, total)
    before_end = lengths[history] - 1 - place  # 0 at the new item
    source = cu_seqlens[1:].long()[history] - before_end
    source = torch.where(before_end == 0, len(items), source)
    return torch.cat([items, items.new_tensor([item])])[source], appended
