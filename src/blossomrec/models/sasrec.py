"""SASRec: a causal Transformer that predicts the next event at every event."""

from __future__ import annotations

from blossomrec.config import ModelConfig
from blossomrec.models.transformer import TransformerModel


class SASRec(TransformerModel):
    """Self-attentive sequential recommendation (Kang and McAuley, ICDM 2018).

    The state at an event is compared with the item embeddings to score what comes next.

    Args:
        config: the architecture.
        num_items: size of the catalogue.
    """

    def __init__(self, config: ModelConfig, num_items: int):
        super().__init__(config, num_items, causal=True)
