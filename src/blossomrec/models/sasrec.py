"""SASRec: a causal Transformer that predicts the next event at every event."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blossomrec.attention import AttentionState, PagedStates
from blossomrec.attention.memo import of_one_graph
from blossomrec.attention.state import Step, kept_together
from blossomrec.config import ModelConfig
from blossomrec.data.batch import Batch
from blossomrec.models.sequence import is_one_each
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

    def states(self, **room: int) -> PagedStates:
        """Pages for states of this model, with the room that :class:`PagedStates` takes."""
        return PagedStates(self.stack()[0].attention.layout, len(self.layers), **room)

    def start(self, states: PagedStates | None = None) -> ModelState:
        """The state of a user without events.

        Args:
            states: where it is to be kept; with others of the process where it is None.
        """
        layout = self.stack()[0].attention.layout
        states = PagedStates.shared(layout, len(self.layers)) if states is None else states
        return ModelState(AttentionState.empty(states))

    def extend_batch(
        self, batch: Batch, states: Sequence[ModelState]
    ) -> tuple[Tensor, list[ModelState]]:
        self._refuse_training()
        kept, counts = [state.kept for state in states], batch.cu_seqlens.diff().tolist()
        layout = self.stack()[0].attention.layout
        pages = kept_together(batch.items, counts, kept, layout, len(self.layers))
        before, after_them = _moments(batch, states)
        hidden, after = pages.extend(
            kept, counts, lambda step: self.extend_paged(batch, pages, step, before)
        )
        lasts = [
            new[-1].clone() if count else state.last
            for new, count, state in zip(hidden.split(counts), counts, states, strict=True)
        ]
        return hidden, [ModelState(*each) for each in zip(after, lasts, after_them, strict=True)]

    @torch.no_grad()
    def extend_paged(
        self, batch: Batch, states: PagedStates, step: Step, before: Tensor | None = None
    ) -> Tensor:
        """Encode new events of many users.

        Args:
            batch: the events of ``step``, in its order, as histories of each user's.
            states: of this model, see :meth:`states`.
            step: of ``states``, not used before.
            before: time of the event before each user's first new one, int64 [B], negative for
                none; None where there is none of any, or the model sees no times.

        Returns:
            Hidden states [E, D], what the next item of each user is scored from; for a model that
            sees the moment for which is recommended, what :meth:`ask` makes that of.

        Raises:
            RuntimeError: the model is in training mode.
            ValueError: the states are those of another number of layers.
        """
        self._check_paged(states)
        rotary, pages = self.rotary(batch, step), iter(states.layers)
        return self._through(
            self.embedded(batch, before=before),
            lambda layer, x: layer.extend_paged(x, next(pages), step, rotary),
        )

    @torch.no_grad()
    def prefill(self, batch: Batch, states: PagedStates, step: Step) -> Tensor:
        """Encode whole histories, as :meth:`queries` does, and keep them in pages.

        Args:
            batch: histories, none of them empty: the events of ``step``, in its order.
            states: as of :meth:`extend_paged`.
            step: of states without events, not used before.

        Returns:
            Hidden states [B, D] at the last event of each history.

        Raises:
            RuntimeError, ValueError: as of :meth:`extend_paged`.
        """
        self._check_paged(states)
        cu_seqlens, pages = of_one_graph(batch.cu_seqlens), iter(states.layers)
        rotary = self.rotary(batch, cu_seqlens)
        x = self._through(
            self.embed(batch),
            lambda layer, x: layer.prefill(x, cu_seqlens, next(pages), step, rotary),
        )
        return x[batch.last_rows]

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


def _moments(batch: Batch, states: Sequence[ModelState]) -> tuple[Tensor | None, list[int]]:
    """Times of the last events before and after a batch; before it None without times."""
    known = [state.seconds for state in states]
    if batch.times is None:
        return None, known
    if is_one_each(batch):
        return torch.tensor(known, device=batch.times.device), batch.times.tolist()
    lengths, last = batch.cu_seqlens.diff().tolist(), batch.last_rows.clamp(min=0)
    after = batch.times[last].tolist() if len(batch.items) else known
    after = [new if count else old for new, count, old in zip(after, lengths, known, strict=True)]
    return torch.tensor(known, device=batch.times.device), after
