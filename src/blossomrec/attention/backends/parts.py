"""What a Blossom layer does around the operation, in plain PyTorch on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from blossomrec.attention import selector
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.packing import positions
from blossomrec.attention.rotary import rotate, rotate_by
from blossomrec.attention.spec import BlossomSpec, Heads, Target
from blossomrec.attention.state import PagedLayer, Step, eager


class Projections(NamedTuple):
    """Weights of queries [H * d, D], keys and values [G * d, D], and gates [2 * H, D] with a bias.

    Of a union the gates are one bias a head, [H, D]. Without gates the last two are None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    gate: Tensor | None
    gate_bias: Tensor | None


# Extends a layer. Takes new events x [E, D] in the order of the step, the gates of all of them
# where the weights have none, the layer's pages, the step, and what queries and keys are rotated
# by, see ``Parts.extend``; gives hidden [E, D], selected blocks, int32 [E, G, n], and the gates.
Extension = Callable[
    [Tensor, Tensor | None, PagedLayer, Step, Tensor | None], tuple[Tensor, Tensor, Tensor]
]


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
        """Rotated q [T, H, d] and k [T, G, d], v [T, G, d], and gates if there are any.

        Gates are [T, H, 2], sigmoids, or [T, H, 1], the bias of a union, as it is.

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
        q, k = self.rotated(q, k, cu_seqlens, spec, rotary)
        v = linear(x, weights.value).unflatten(-1, (heads.keys, heads.size))
        gates = None if weights.gate is None else gates_of(x, weights, heads.queries, spec)
        return q, k, v, gates

    def rotated(
        self, q: Tensor, k: Tensor, cu_seqlens: Tensor, spec: BlossomSpec, rotary: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """q [T, H, d] and k [T, G, d] rotated, see :meth:`project`."""
        if rotary is not None:
            return rotate_by(q, rotary), rotate_by(k, rotary)
        position = positions(cu_seqlens, len(q))
        return rotate(q, position, spec.rotary_share), rotate(k, position, spec.rotary_share)

    def block_keys(
        self, compression: MeanCompression | MLPCompression, k: Tensor, cu_seqlens: Tensor
    ) -> Tensor:
        """Keys of all complete blocks, [J, G, d], of rotated keys [T, G, d]."""
        return compression(k, cu_seqlens)

    def keys_to_choose_by(
        self,
        compression: MeanCompression | MLPCompression,
        k: Tensor,
        cu_seqlens: Tensor,
        spec: BlossomSpec,
    ) -> Tensor:
        """As :meth:`block_keys`; any numbers for histories of which all blocks are selected."""
        return self.block_keys(compression, k, cu_seqlens)

    def selector_loss(
        self, q: Tensor, k: Tensor, block_keys: Tensor, cu_seqlens: Tensor, **given: Any
    ) -> Tensor:
        """See :func:`blossomrec.attention.selector.selector_loss`."""
        return selector.selector_loss(q, k, block_keys, cu_seqlens, **given)

    def captures_steps(self, target: Target) -> bool:
        """Whether :meth:`extend` never waits for the device, as a CUDA graph needs it."""
        return False

    def extension(
        self,
        weights: Projections,
        output: Tensor,
        heads: Heads,
        compression: MeanCompression | MLPCompression,
        spec: BlossomSpec,
    ) -> Extension:
        """What extends a whole layer over pages: projections, :meth:`extend`, and the output.

        Args:
            weights: those of the layer.
            output: [D, H * d], weight of the output's projection.
            heads: H, G, d.
            compression, spec: as of :meth:`extend`.
        """

        def extend_layer(x, gates, layer, step, rotary):
            q, k, v = (
                linear(x, weight).unflatten(-1, (-1, heads.size))
                for weight in (weights.query, weights.key, weights.value)
            )
            if gates is None:
                gates = gates_of(x, weights, heads.queries, spec)
            out, selected = self.extend(q, k, v, gates, layer, step, compression, spec, rotary)
            return linear(out.flatten(1), output), selected, gates

        return extend_layer

    def extend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gates: Tensor,
        layer: PagedLayer,
        step: Step,
        compression: MeanCompression | MLPCompression,
        spec: BlossomSpec,
        rotary: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Put new events into pages and attend from them, as the operation over whole histories.

        Args:
            q: [E, H, d] queries of the events of ``step``, not yet rotated.
            k, v: [E, G, d] their keys, not yet rotated, and values.
            gates: [E, H, 2] weights of the long-term and the short-term path; of a union the bias,
                [E, H, 1].
            layer: the pages, which are changed.
            step: where the events go.
            compression: makes the keys of the blocks that become complete.
            spec: the definition.
            rotary: [E, 2, pairs], cosine and sine that queries and keys are rotated by; None for
                those of their positions.

        Returns:
            [E, H, d] in the type of ``q``, and the selected blocks, int32 [E, G, n], numbered from
            the start of the whole history, rising with -1 last.
        """
        with torch.autocast(q.device.type, enabled=False):
            q, k = eager.rotated(q, k, step, spec.rotary_share, rotary)
            eager.append(k, v, layer, step)
            eager.close_blocks(layer, step, compression)
            return eager.attend(q, gates, layer, step, spec)


def gates_of(x: Tensor, weights: Projections, heads: int, spec: BlossomSpec) -> Tensor:
    """Of events [T, D]: weights of both paths, sigmoids [T, H, 2], or a union's bias, [T, H, 1]."""
    assert weights.gate is not None
    gates = linear(x, weights.gate, weights.gate_bias).view(len(x), heads, spec.gate_size)
    return gates if spec.is_union else gates.sigmoid()
