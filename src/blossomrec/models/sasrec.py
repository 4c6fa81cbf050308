"""SASRec: a causal Transformer that predicts the next event at every event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from blossomrec.attention import AttentionState, PagedStates
from blossomrec.attention.memo import of_one_graph
from blossomrec.attention.state import KeepsStates, Step, kept_together
from blossomrec.config import ModelConfig
from blossomrec.data.batch import Batch
from blossomrec.errors import ConfigError
from blossomrec.models.recurrent import (
    Continued,
    RecurrentAttention,
    RecurrentState,
    extend_together,
    moments,
)
from blossomrec.models.state import ModelState
from blossomrec.models.transformer import TransformerLayer, TransformerModel


class SASRec(TransformerModel):
    """Self-attentive sequential recommendation (Kang and McAuley, ICDM 2018).

    The state at an event is compared with the item embeddings to score what comes next. What is
    kept of a user are pages of keys and values, or a few tensors of one size where the attention
    is a :class:`RecurrentAttention`.

    Args:
        config: the architecture.
        num_items: size of the catalogue.
    """

    captured = True

    def __init__(self, config: ModelConfig, num_items: int):
        super().__init__(config, num_items, causal=self.causal)

    def states(self, **room: int) -> PagedStates:
        """Pages for states of this model, with the room that :class:`PagedStates` takes.

        Raises:
            ValueError: it keeps no pages.
        """
        if not self.keeps_pages:
            raise ValueError(f"attention {self.config.attention} keeps no pages")
        return PagedStates(self.stack()[0].attention.layout, len(self.layers), **room)

    @property
    def keeps_pages(self) -> bool:
        """Whether :meth:`states` are what is kept of users."""
        return not isinstance(self.stack()[0].attention, RecurrentAttention)

    def start(self, states: PagedStates | None = None) -> ModelState | RecurrentState:
        """The state of a user without events.

        Args:
            states: where it is to be kept; with others of the process where it is None.

        Raises:
            ConfigError: the attention keeps no state.
        """
        attentions = [layer.attention for layer in self.stack()]
        if not self.keeps_pages:
            return RecurrentState(tuple(x[0] for each in attentions for x in each.initial(1)))
        if not isinstance(attentions[0], KeepsStates):
            raise ConfigError(f"attention {self.config.attention} keeps no state")
        layout = self.stack()[0].attention.layout
        states = PagedStates.shared(layout, len(self.layers)) if states is None else states
        return ModelState(AttentionState.empty(states))

    def extend_batch(self, batch: Batch, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        self._refuse_training()
        if not self.keeps_pages:
            start = cast(RecurrentState, self.start())
            return extend_together(batch, states, start, self._extend_recurrent)
        kept, counts = [state.kept for state in states], batch.cu_seqlens.diff().tolist()
        layout = self.stack()[0].attention.layout
        pages = kept_together(batch.items, counts, kept, layout, len(self.layers))
        before, after_them = moments(batch, states)
        hidden, after = pages.extend(
            kept, counts, lambda step: self.extend_paged(batch, pages, step, before)
        )
        window = getattr(self.stack()[0].attention, "window", None)
        if window is not None:
            # Of what nothing will see again as much is left as is seen, so that it leaves rarely.
            after = [each if each.held <= 2 * window else each.trim(window) for each in after]
        lasts = [
            new[-1].clone() if count else state.last
            for new, count, state in zip(hidden.split(counts), counts, states, strict=True)
        ]
        return hidden, [ModelState(*each) for each in zip(after, lasts, after_them, strict=True)]

    @torch.no_grad()
    def _extend_recurrent(
        self, batch: Batch, given: Continued, kept: Sequence[Tensor], before: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode new events of many users; gives what is kept of all layers after them."""
        after, share = list[Tensor](), len(kept) // len(self.layers)
        rotary = self.rotary(batch, given)

        def attended(layer: TransformerLayer, x: Tensor) -> Tensor:
            own = tuple(kept[len(after) : len(after) + share])
            x, grown = layer.extend_recurrent(x, given, own, rotary)
            after.extend(grown)
            return x

        return self._through(self.embedded(batch, before=before), attended), after

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
