"""What a trained model's Blossom attention does: how its gates stand, which blocks it selects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from blossomrec.data.batches import HistoryBatches
from blossomrec.data.log import EventLog
from blossomrec.data.split import Cases
from blossomrec.models.sequence import SequenceModel


@dataclass(frozen=True)
class AttentionProfile:
    """Attention of a model on a few histories.

    Attributes:
        gates: float64 [layers, H, 2], mean weight of the long-term and the short-term path.
        selected: for each history, int32 [layers, L, G, n] block numbers, -1 for none.
        users: int64, the user row of each of those histories.
    """

    gates: np.ndarray
    selected: list[np.ndarray]
    users: np.ndarray


def attention_profile(
    model: SequenceModel, log: EventLog, cases: Cases, *, histories: int = 3
) -> AttentionProfile | None:
    """Gates and selected blocks of a model in evaluation mode, for the longest of the histories.

    Returns None for a model without Blossom attention.
    """
    cases = cases.last_of_each_user()
    longest = np.argsort(-cases.history_end, kind="stable")[:histories]
    batches = HistoryBatches(
        log,
        cases.users[longest],
        cases.history_end[longest],
        max_len=model.max_len,
        tokens_per_batch=max(model.max_len * histories, 1),
    )
    device = model.item_embeddings.weight.device
    gates, selected = [], []
    with torch.no_grad():
        for _, batch in batches:
            batch = batch.to(device)
            encoded = model.encode(
                batch.items, batch.cu_seqlens, batch.max_length, keep_layers=True
            )
            weights = [layer.gates for layer in encoded.layers if layer.gates is not None]
            blocks = [layer.selected for layer in encoded.layers if layer.selected is not None]
            if not blocks:
                return None
            gates.append(torch.stack(weights).float().cpu())
            lengths = batch.cu_seqlens.diff().tolist()
            selected += torch.stack(blocks).cpu().split(lengths, dim=1)
    return AttentionProfile(
        torch.cat(gates, dim=1).double().mean(1).numpy(),
        [one.numpy() for one in selected],
        cases.users[longest],
    )
