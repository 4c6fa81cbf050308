"""A step of many users as one CUDA graph, for where the host takes longer than the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from blossomrec.attention.state.attention_state import AttentionState
from blossomrec.attention.state.paged_states import PagedStates
from blossomrec.attention.state.pages import NOBODY, Step


class StepGraph:
    """One event of each of up to ``users`` users, captured once and replayed.

    Steps are filled up to ``users`` with events that are nobody's. It is captured anew when the
    pages or the table have moved to larger tensors: make room beforehand. Elsewhere than on a GPU
    the function is called as it is.

    Args:
        function: of the input of each event, [users, ...], and the step; gives [users, ...]. It
            must not wait for the device, so it needs the kernels.
        states: what the steps are taken of.
        users: most users of a step.
    """

    def __init__(self, function: Callable[[Tensor, Step], Tensor], states: PagedStates, users: int):
        self.function, self.states, self.users = function, states, users
        self._generation = -1

    @torch.no_grad()
    def __call__(
        self, x: Tensor, states: Sequence[AttentionState]
    ) -> tuple[Tensor, list[AttentionState]]:
        """Input [B, ...] of one more event of each user; gives the function's [B, ...].

        The input may be on the host; from pinned memory it is copied without a wait.

        Returns:
            What the function gives, and the states after the events.

        Raises:
            ValueError, OutOfPagesError: as :meth:`PagedStates.step`.
        """
        step, after = self.states.step(states, pad_to=self.users)
        if not self.states.table.is_cuda:
            return self.function(_filled(x, self.users), step)[: len(x)], after
        if self._generation != self.states.generation:
            self._capture(x)
        self._x[: len(x)].copy_(x, non_blocking=True)
        self._step.rows.copy_(step.rows)
        self._graph.replay()
        # The next replay writes to the same place.
        return self._out[: len(x)].clone(), after

    def _capture(self, x: Tensor) -> None:
        table, users = self.states.table, self.users
        longest = table.shape[1] * self.states.block_size
        # Made in inference mode they could not be written to outside of it.
        with torch.inference_mode(False):
            self._x = _filled(x.to(table.device), users)
            # Any event may complete its block, and any user may come to be the longest.
            parts = (*range(users), *[longest] * users, *[NOBODY] * 2 * users, *range(users))
            host, known = np.array(parts, np.int32), np.zeros(table.shape, np.int32)
            moved = torch.from_numpy(host).to(table.device)
            self._step = Step(users, self.states.block_size, table, known, host, moved)
            self._step.rows.fill_(NOBODY)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.function(self._x, self._step)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._out = self.function(self._x, self._step)
        self._generation = self.states.generation


def _filled(x: Tensor, count: int) -> Tensor:
    """x [B, ...] with zeros behind it, [count, ...]."""
    filled = x.new_zeros(count, *x.shape[1:])
    filled[: len(x)] = x
    return filled
