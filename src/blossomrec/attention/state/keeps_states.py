"""How any causal attention is extended event by event: over pages, which it attends to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from blossomrec.attention.state.attention_state import AttentionState
from blossomrec.attention.state.paged_states import PagedStates
from blossomrec.attention.state.pages import Layout, PagedLayer, Step


class KeepsStates:
    """Base of attention layers that attend from new events over what is kept of older ones."""

    @property
    def layout(self) -> Layout:
        """Of the states of this attention.

        Raises:
            ValueError: the attention is bidirectional, so that a new event changes all old ones.
        """
        raise NotImplementedError

    def extend_paged(
        self, x: Tensor, layer: PagedLayer, step: Step, rotary: Tensor | None = None
    ) -> Any:
        """Attend from new events of many users, whose keys and values go into pages.

        Args:
            x: [E, D], the events of ``step``, in its order.
            layer: this layer's pages, of the :class:`PagedStates` that made ``step``; changed.
            step: where the events go.
            rotary: [E, 2, pairs], cosine and sine of the angles that queries and keys are rotated
                by; None for those of their positions.

        Returns:
            The ``AttentionOutput`` of the events.
        """
        raise NotImplementedError

    def start(self) -> AttentionState:
        """The state of a user without events.

        Raises:
            ValueError: the attention is bidirectional.
        """
        return AttentionState.empty(PagedStates.shared(self.layout))

    def extend(self, x: Tensor, state: AttentionState) -> tuple[Any, AttentionState]:
        """Attend from the next events of one user; see :meth:`extend_batch`.

        Args:
            x: [t, D], the events that follow those of ``state``.
            state: made by :meth:`start`, or by an earlier call; it stays as it is.

        Returns:
            The output of the new events, as :meth:`forward` over the whole history gives it, and
            the state after them.
        """
        output, (extended,) = self.extend_batch(x, [len(x)], [state])
        return output, extended

    def extend_batch(
        self, x: Tensor, counts: Sequence[int], states: Sequence[AttentionState]
    ) -> tuple[Any, list[AttentionState]]:
        """Attend from the next events of several users; no gradient flows.

        The cost of an event does not grow with the history, but for one score a complete block.

        Args:
            x: [t, D], user after user.
            counts: new events of each user, t in all.
            states: of each user.

        Returns:
            The output of the new events and the states after them; selected blocks are numbered
            from the start of the whole history.

        Raises:
            ValueError: ``counts`` do not fit, or a state is that of another attention.
        """
        kept = kept_together(x, counts, states, self.layout)
        return kept.extend(states, counts, lambda step: self.extend_paged(x, kept.layers[0], step))


def kept_together(
    x: Tensor,
    counts: Sequence[int],
    states: Sequence[AttentionState],
    layout: Layout,
    layers: int = 1,
) -> PagedStates:
    """Where states are kept; refuses new events that do not fit them, and others' states.

    Args:
        x: [t, ...], the new events, user after user.
        counts: new events of each user, t in all.
        states: of each user.
        layout, layers: of the model's states.

    Raises:
        ValueError: ``counts`` do not fit ``x`` and ``states``, or a state is another model's or is
            kept elsewhere than the first.
    """
    if len(counts) != len(states) or sum(counts) != x.shape[0] or min(counts, default=0) < 0:
        raise ValueError(
            f"counts {list(counts)} do not fit {len(states)} states and {len(x)} new events"
        )
    if not states:
        return PagedStates.shared(layout, layers)
    found = states[0].states
    for number, state in enumerate(states):
        if state.states is found and number:
            continue
        if state.layout != layout:
            raise ValueError(f"state {number} has {state.layout}: this attention has {layout}")
        if len(state.states.layers) != layers:
            raise ValueError(
                f"state {number} has {len(state.states.layers)} layers: this model has {layers}"
            )
        if state.states is not found:
            raise ValueError(f"state {number} is kept in other pages than state 0")
    return found
