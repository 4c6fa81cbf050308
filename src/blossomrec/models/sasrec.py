"""SASRec: a causal Transformer that predicts the next event at every event."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blossomrec.config import ModelConfig
from blossomrec.models.state import ModelState
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

    def start(self) -> ModelState:
        return ModelState(tuple(layer.start() for layer in self.stack()))

    @torch.no_grad()
    def extend_batch(
        self, items: Tensor, counts: Sequence[int], states: Sequence[ModelState]
    ) -> tuple[Tensor, list[ModelState]]:
        if self.training:
            raise RuntimeError("the model is in training mode: call eval() before extending states")
        if any(len(state.layers) != len(self.layers) for state in states):
            found = [len(state.layers) for state in states]
            raise ValueError(f"the states have {found} layers: this model has {len(self.layers)}")
        x = self.embed(items)
        kept = []
        for number, layer in enumerate(self.stack()):
            x, extended = layer.extend_batch(x, counts, [state.layers[number] for state in states])
            kept.append(extended)
        hidden = self.final_norm(x)
        lasts = [
            new[-1].clone() if count else state.last
            for new, count, state in zip(hidden.split(list(counts)), counts, states, strict=True)
        ]
        layers = zip(*kept, strict=True)
        return hidden, [ModelState(*each) for each in zip(layers, lasts, strict=True)]
