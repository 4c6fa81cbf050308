"""What a Blossom layer does around the operation, in plain PyTorch on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from blossomrec.attention import selector
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.packing import positions
from blossomrec.attention.rotary import rotate, rotate_by
from blossomrec.attention.spec import BlossomSpec, Heads, Target
from blossomrec.attention.state import extend
from blossomrec.attention.state.attention_state import AttentionState
from blossomrec.attention.state.paged import eager
from blossomrec.attention.state.paged.pages import PagedLayer, Step


class Projections(NamedTuple):
    """Weights of queries [H * d, D], keys and values [G * d, D], and gates [2 * H, D] with a bias.

    Without gates the last two are None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    gate: Tensor | None
    gate_bias: Tensor | None


class Parts:
    """The parts of a layer around the operation; a backend overrides what it does better."""

    def project(
        self,
        x: Tensor,
        weights: Projections,
        cu_seqlens: Tensor,
        heads: Heads,
        spec: BlossomSpec,
        rotary: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Rotated q [T, H, d] and k [T, G, d], v [T, G, d], and gates [T, H, 2] if there are any.

        Args:
            x: [T, D] packed events.
            cu_seqlens: int32 [B+1].
            rotary: [T, 2, pairs], cosine and sine of each row's angles; None for those of its
                position.
        """
        q, k = (
            linear(x, weight).unflatten(-1, (-1, heads.size))
            for weight in (weights.query, weights.key)
        )
        if rotary is None:
            position = positions(cu_seqlens, len(x))
            q, k = (rotate(each, position, spec.rotary_share) for each in (q, k))
        else:
            q, k = rotate_by(q, rotary), rotate_by(k, rotary)
        v = linear(x, weights.value).unflatten(-1, (heads.keys, heads.size))
        gates = None
        if weights.gate is not None:
            gates = linear(x, weights.gate, weights.gate_bias)
            gates = gates.view(len(x), heads.queries, 2).sigmoid()
        return q, k, v, gates

    def block_keys(
        self, compression: MeanCompression | MLPCompression, k: Tensor, cu_seqlens: Tensor
    ) -> Tensor:
        """Keys of all complete blocks, [J, G, d], of rotated keys [T, G, d]."""
        return compression(k, cu_seqlens)

    def selector_loss(
        self, q: Tensor, k: Tensor, block_keys: Tensor, cu_seqlens: Tensor, **given: Any
    ) -> Tensor:
        """See :func:`blossomrec.attention.selector.selector_loss`."""
        return selector.selector_loss(q, k, block_keys, cu_seqlens, **given)

    def extend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Tensor,
        counts: Sequence[int],
        states: Sequence[AttentionState],
        pool: Callable[[Tensor], Tensor],
        spec: BlossomSpec,
    ) -> tuple[Tensor, Tensor, list[AttentionState]]:
        """See :func:`blossomrec.attention.state.extend.extend`."""
        return extend.extend(q, k, v, gates, counts, states, pool, spec)

    def captures_steps(self, target: Target) -> bool:
        """Whether a step over pages never waits for the device, as a CUDA graph needs it."""
        return False

    def append_paged(
        self,
        k: Tensor,
        v: Tensor,
        layer: PagedLayer,
        step: Step,
        compression: MeanCompression | MLPCompression,
    ) -> None:
        """Write keys and values [B, G, d] to their pages, and the keys of blocks now complete."""
        eager.append(k, v, layer, step)
        eager.close_blocks(layer, step, compression)

    def attend_paged(
        self, q: Tensor, gates: Tensor, layer: PagedLayer, step: Step, spec: BlossomSpec
    ) -> tuple[Tensor, Tensor]:
        """Output of the events appended last, [B, H, d], and the selected blocks.

        What the operation gives for whole histories; blocks, int32 [B, G, n], are numbered from
        the start of the whole history, rising with -1 last.

        Args:
            q: [B, H, d] rotated queries.
            gates: [B, H, 2].
            layer, step: with the events in them.
        """
        with torch.autocast(q.device.type, enabled=False):
            return eager.attend(q, gates, layer, step, spec)
