"""SASRec: a causal Transformer that predicts the next event at every event."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blossomrec.attention import PagedStates
from blossomrec.attention.memo import of_one_graph
from blossomrec.attention.state.paged import Prefill, Step
from blossomrec.config import ModelConfig
from blossomrec.data.batch import Batch
from blossomrec.models.state import ModelState
from blossomrec.models.transformer import TransformerModel


class SASRec(TransformerModel):
    """Self-attentive sequential recommendation (Kang and McAuley, ICDM 2018).

    The state at an event is compared with the item embeddings to score what comes next.

    Args:
        config: the architecture.
        num_items: size of the catalogue.
    """

    captured = True

    def __init__(self, config: ModelConfig, num_items: int):
        super().__init__(config, num_items, causal=self.causal)

    def start(self) -> ModelState:
        return ModelState(tuple(layer.start() for layer in self.stack()))

    @torch.no_grad()
    def extend_batch(
        self, batch: Batch, states: Sequence[ModelState]
    ) -> tuple[Tensor, list[ModelState]]:
        self._refuse_training()
        if any(len(state.layers) != len(self.layers) for state in states):
            found = [len(state.layers) for state in states]
            raise ValueError(f"the states have {found} layers: this model has {len(self.layers)}")
        x, counts = self.embed(batch), batch.cu_seqlens.diff().tolist()
        kept = []
        for number, layer in enumerate(self.stack()):
            x, extended = layer.extend_batch(x, counts, [state.layers[number] for state in states])
            kept.append(extended)
        hidden = self.final_norm(x)
        lasts = [
            new[-1].clone() if count else state.last
            for new, count, state in zip(hidden.split(counts), counts, states, strict=True)
        ]
        layers = zip(*kept, strict=True)
        return hidden, [ModelState(*each) for each in zip(layers, lasts, strict=True)]

    @torch.no_grad()
    def extend_paged(self, batch: Batch, states: PagedStates, step: Step) -> Tensor:
        """Encode the next event of each of many users, whose states are kept in pages.

        Args:
            batch: one event of each user of ``step``, in its order; see ``next_events``.
            states: made as ``PagedStates(model.start().layers)``; a user comes to it from a
                ``ModelState`` as ``states.add(state.layers)``, and back by ``states.read(user)``.
            step: ``states.step(users)``, not used before.

        Returns:
            Hidden states [B, D], what the next item of each user is scored from.

        Raises:
            RuntimeError: the model is in training mode.
            ValueError: the states are those of another number of layers, or the attention is full.
        """
        self._check_paged(states)
        x = self.embed(batch)
        for layer, kept in zip(self.stack(), states.layers, strict=True):
            x = layer.extend_paged(x, kept, step)
        return self.final_norm(x)

    @torch.no_grad()
    def prefill(self, batch: Batch, states: PagedStates, prefill: Prefill) -> Tensor:
        """Encode whole histories, as :meth:`queries` does, and keep them in pages.

        Args:
            batch: histories, none of them empty, of the users of ``prefill``, in its order.
            states: as of :meth:`extend_paged`.
            prefill: ``states.prefill(lengths)`` of the batch's lengths, not used before.

        Returns:
            Hidden states [B, D] at the last event of each history.

        Raises:
            RuntimeError, ValueError: as of :meth:`extend_paged`.
        """
        self._check_paged(states)
        x, cu_seqlens = self.embed(batch), of_one_graph(batch.cu_seqlens)
        for layer, kept in zip(self.stack(), states.layers, strict=True):
            x = layer.prefill(x, cu_seqlens, kept, prefill)
        return self.final_norm(x[batch.last_rows])

    @property
    def captures_steps(self) -> bool:
        """Whether :meth:`extend_paged` can be part of a CUDA graph, on the device of the model."""
        return all(layer.captures_steps for layer in self.stack())

    def _check_paged(self, states: PagedStates) -> None:
        self._refuse_training()
        if len(states.layers) != len(self.layers):
            raise ValueError(
                f"the states have {len(states.layers)} layers: this model has {len(self.layers)}"
            )

    def _refuse_training(self) -> None:
        if self.training:
            raise RuntimeError("the model is in training mode: call eval() before extending states")
