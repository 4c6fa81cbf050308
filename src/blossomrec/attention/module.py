"""Blossom attention as a layer: projections, rotary embedding, compression, gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from blossomrec import kernels
from blossomrec.attention import paged
from blossomrec.attention.api import blossom_attention
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.incremental import extend
from blossomrec.attention.packing import positions
from blossomrec.attention.rotary import rotate, turned_pairs, turns
from blossomrec.attention.selector import selector_loss
from blossomrec.attention.state import AttentionState, check_extension

# The gate starts short-term: sigmoid(-2) = 0.12 long, sigmoid(2) = 0.88 short.
GATE_START = (-2.0, 2.0)
# Numbers that a head's gate is made of.
GATES = {"independent": 2, "convex": 1}
# Weights of the two paths where one is left out.
FIXED_GATES = {"both": None, "long": (1.0, 0.0), "short": (0.0, 1.0)}


@dataclass(frozen=True)
class AttentionOutput:
    """What an attention layer gives.

    Attributes:
        hidden: [T, D].
        selector_loss: scalar that teaches the selector, None where nothing is to be taught.
        selected: int32 [T, G, n] selected blocks, -1 for none; None for dense attention.
        gates: [T, H, 2] weights of the long and short path; None for dense attention.
    """

    hidden: Tensor
    selector_loss: Tensor | None = None
    selected: Tensor | None = None
    gates: Tensor | None = None


class BlossomAttention(nn.Module):
    """Block-level fused sparse attention over packed histories (BlossomRec, arXiv 2512.13368).

    Args:
        hidden_size: D, a multiple of ``num_heads``.
        num_heads: H query heads.
        num_kv_heads: G key/value heads, dividing H; the heads of a group select together.
        block_size, top_n, window, sinks, causal, impl: see
            :func:`blossomrec.attention.blossom_attention`.
        compress: "mlp" (learned) or "mean" (no parameters).
        compress_window: keys that one block key is made of by "mlp".
        rotary_share: share of each head's dimensions that rotary embedding turns; the rest compare
            contents, whatever the distance.
        paths: "both", or one alone: "long" or "short", with weight 1 and no gate.
        gate: "independent" weights of the two paths, as published, or "convex": they sum up to 1.

    Raises:
        ValueError: sizes do not fit each other, or ``compress``, ``paths`` or ``gate`` is unknown.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        block_size: int = 16,
        top_n: int = 4,
        window: int = 8,
        sinks: int = 0,
        causal: bool = True,
        compress: str = "mlp",
        compress_window: int = 32,
        rotary_share: float = 0.5,
        paths: str = "both",
        gate: str = "independent",
        impl: str = "auto",
    ):
        super().__init__()
        if hidden_size % num_heads or num_heads % num_kv_heads or hidden_size // num_heads % 2:
            raise ValueError(
                f"hidden_size {hidden_size}, num_heads {num_heads}, num_kv_heads {num_kv_heads}: "
                "each must be a multiple of the next, with an even hidden_size / num_heads"
            )
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.head_dim = hidden_size // num_heads
        self.block_size, self.top_n = block_size, top_n
        self.window, self.sinks = window, sinks
        self.causal, self.impl = causal, impl
        self.rotary_share, self.paths = rotary_share, paths
        self.query = nn.Linear(hidden_size, num_heads * self.head_dim, bias=False)
        self.key = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=False)
        self.output = nn.Linear(num_heads * self.head_dim, hidden_size, bias=False)
        if paths == "short":
            compress = "mean"  # nothing is selected, so nothing is to be learned
        if compress == "mlp":
            self.compress = MLPCompression(
                head_dim=self.head_dim, block_size=block_size, window=compress_window
            )
        elif compress == "mean":
            self.compress = MeanCompression(block_size=block_size)
        else:
            raise ValueError(f"compress is {compress!r}: choose mlp or mean")
        if paths not in FIXED_GATES:
            raise ValueError(f"paths is {paths!r}: choose one of {', '.join(FIXED_GATES)}")
        if gate not in GATES:
            raise ValueError(f"gate is {gate!r}: choose one of {', '.join(GATES)}")
        numbers = num_heads * GATES[gate]
        self.gate = nn.Linear(hidden_size, numbers) if paths == "both" else None
        self.reset_gate()

    def reset_gate(self) -> None:
        """Start with the short-term path open and the long-term one nearly closed."""
        if self.gate is None:
            return
        nn.init.zeros_(self.gate.weight)
        with torch.no_grad():
            numbers = len(self.gate.bias) // self.num_heads
            self.gate.bias.copy_(torch.tensor(GATE_START[:numbers]).repeat(self.num_heads))

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        *,
        max_length: int | None = None,
        lessons: Tensor | None = None,
    ) -> AttentionOutput:
        """Attend within each packed history.

        Args:
            x: [T, D] packed events.
            cu_seqlens: int32 [B+1].
            max_length: longest history, in events; looked up where it is not given and needed.
            lessons: int64 [C], rising: packed rows of the events from which the loss that teaches
                the selector may draw its lessons; T, which is no row, may fill up the end. None: it
                is not computed.
        """
        q, k, v, gates = self.project(x, cu_seqlens)
        block_keys = self.compress(k, cu_seqlens)
        out, selected = self._attend(q, k, v, block_keys, gates, cu_seqlens)
        loss = None
        if lessons is not None and self.paths != "short":
            if max_length is None:
                max_length = int(cu_seqlens.diff().max())
            loss = self._teach(q, k, block_keys, cu_seqlens, lessons, max_length)
        return AttentionOutput(self.output(out.flatten(1)), loss, selected, gates)

    def project(self, x: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rotated queries [T, H, d] and keys [T, G, d], values [T, G, d], gates [T, H, 2]."""
        if kernels.usable(x):
            return self._project_in_one_pass(x, cu_seqlens)
        place = positions(cu_seqlens, len(x))
        q, k = self._rotate(self.query(x), place), self._rotate(self.key(x), place)
        v = self.value(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        return q, k, v, self._gates(x)

    def queries_and_keys(self, x: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated queries [T, H, d] and keys [T, G, d] of the input x, [T, D]."""
        return self.project(x, cu_seqlens)[:2]

    def _project_in_one_pass(
        self, x: Tensor, cu_seqlens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        from blossomrec.kernels.projection import Heads, project

        pairs = turned_pairs(self.head_dim, self.rotary_share)
        weights = (self.query.weight, self.key.weight, self.value.weight)
        bias = None
        if self.gate is not None:
            weight, bias = self._gate_parameters(self.gate)
            weights = (*weights, weight)
        heads = Heads(self.num_heads, self.num_kv_heads, self.head_dim, pairs)
        angles = turns(cu_seqlens, len(x), pairs)
        q, k, v, gates = project(x, weights, bias, angles, heads)
        return q, k, v, self._gates(q) if gates is None else gates

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        block_keys: Tensor,
        gates: Tensor,
        cu_seqlens: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Output [T, H, d] and selected blocks, int32 [T, G, n]."""
        return blossom_attention(
            q,
            k,
            v,
            block_keys.detach(),
            gates,
            cu_seqlens,
            block_size=self.block_size,
            top_n=self.top_n,
            window=self.window,
            sinks=self.sinks,
            causal=self.causal,
            impl=self.impl,
        )

    def _teach(
        self,
        q: Tensor,
        k: Tensor,
        block_keys: Tensor,
        cu_seqlens: Tensor,
        lessons: Tensor,
        max_length: int,
    ) -> Tensor | None:
        """The loss that teaches the selector."""
        return selector_loss(
            q,
            k,
            block_keys,
            cu_seqlens,
            lessons,
            max_length=max_length,
            block_size=self.block_size,
            causal=self.causal,
            impl=self.impl,
        )

    def _rotate(self, x: Tensor, place: Tensor) -> Tensor:
        """Projections [T, heads * d] as rotated heads [T, heads, d]."""
        return rotate(x.unflatten(-1, (-1, self.head_dim)), place, self.rotary_share)

    def _gates(self, x: Tensor) -> Tensor:
        """Weights of the long-term and the short-term path, [T, H, 2]."""
        if self.gate is None:
            # Filled on the device, so that a CUDA graph can be captured.
            shares = [x.new_full((len(x), self.num_heads), w) for w in FIXED_GATES[self.paths]]
            return torch.stack(shares, -1)
        numbers = functional.linear(x, *self._gate_parameters(self.gate))
        return numbers.view(len(x), self.num_heads, 2).sigmoid()

    def _gate_parameters(self, gate: nn.Linear) -> tuple[Tensor, Tensor]:
        """Weight [2 * H, D] and bias [2 * H] of what the sigmoids of the two paths are taken of."""
        if len(gate.bias) == 2 * self.num_heads:
            return gate.weight, gate.bias
        # sigmoid(-z) is 1 - sigmoid(z).
        weight, bias = (torch.stack((x, -x), 1).flatten(0, 1) for x in (gate.weight, gate.bias))
        return weight, bias

    def start(self) -> AttentionState:
        """The state of a user without events.

        Raises:
            ValueError: the attention is bidirectional, so that a new event changes all old ones.
        """
        if not self.causal:
            raise ValueError("causal is False: only causal attention can be extended")
        return AttentionState.empty(
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            block_size=self.block_size,
            reach=self.compress.window,
            like=self.key.weight.detach(),
        )

    @property
    def _layout(self) -> tuple[object, ...]:
        """That of the states which :meth:`start` makes."""
        weight = self.key.weight
        heads = (self.num_kv_heads, self.head_dim)
        return self.block_size, self.compress.window, *heads, weight.dtype, weight.device

    def extend(self, x: Tensor, state: AttentionState) -> tuple[AttentionOutput, AttentionState]:
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

    @torch.no_grad()
    def extend_batch(
        self, x: Tensor, counts: Sequence[int], states: Sequence[AttentionState]
    ) -> tuple[AttentionOutput, list[AttentionState]]:
        """Attend from the next events of several users; no gradient flows.

        The cost of an event does not grow with the history, but for one score a complete block.

        Args:
            x: [t, D], user after user.
            counts: new events of each user, t in all.
            states: of each user, each its own.

        Returns:
            The output of the new events and the states after them; selected blocks are numbered
            from the start of the whole history.

        Raises:
            ValueError: ``counts`` do not fit, or a state is that of another attention.
        """
        check_extension(x, counts, states, self._layout)
        shape = (len(x), self.num_kv_heads, self.head_dim)
        out, selected, states = extend(
            self.query(x).view(len(x), self.num_heads, self.head_dim),
            self.key(x).view(shape),
            self.value(x).view(shape),
            gates := self._gates(x),
            counts,
            states,
            self.compress.pool,
            rotary_share=self.rotary_share,
            impl=self.impl,
            top_n=self.top_n,
            window=self.window,
            sinks=self.sinks,
        )
        hidden = self.output(out.flatten(1))
        return AttentionOutput(hidden, None, selected, gates), states

    @torch.no_grad()
    def extend_paged(self, x: Tensor, layer: paged.PagedLayer, step: paged.Step) -> AttentionOutput:
        """Attend from the next event of each of many users, whose states are kept in pages.

        No work of the host grows with the users, and nothing waits for the device where the
        kernels are used.

        Args:
            x: [B, D], of the users of ``step``, in its order.
            layer: this layer's pages, of the :class:`PagedStates` that made ``step``; changed.
            step: where the events go.
        """
        heads = self._rotate(torch.cat((self.query(x), self.key(x)), -1), step.position)
        q, k = heads.split((self.num_heads, self.num_kv_heads), dim=1)
        v = self.value(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        gates = self._gates(x)
        paged.append(k, v, layer, step, self.compress, impl=self.impl)
        with torch.autocast(x.device.type, enabled=False):
            out, selected = paged.attend(
                q,
                gates,
                layer,
                step,
                top_n=self.top_n,
                window=self.window,
                sinks=self.sinks,
                impl=self.impl,
            )
        return AttentionOutput(self.output(out.flatten(1)), None, selected, gates)
