"""Blossom attention as a layer: projections, rotary embedding, compression, gate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blossomrec.attention.api import blossom_attention
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.packing import positions
from blossomrec.attention.rotary import rotate
from blossomrec.attention.selector import selector_loss

# The gate starts short-term: sigmoid(-2) = 0.12 long, sigmoid(2) = 0.88 short.
GATE_START = (-2.0, 2.0)


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

    Raises:
        ValueError: sizes do not fit each other, or ``compress`` is unknown.
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
        self.query = nn.Linear(hidden_size, num_heads * self.head_dim, bias=False)
        self.key = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(hidden_size, num_kv_heads * self.head_dim, bias=False)
        self.gate = nn.Linear(hidden_size, num_heads * 2)
        self.output = nn.Linear(num_heads * self.head_dim, hidden_size, bias=False)
        if compress == "mlp":
            self.compress = MLPCompression(
                head_dim=self.head_dim, block_size=block_size, window=compress_window
            )
        elif compress == "mean":
            self.compress = MeanCompression(block_size=block_size)
        else:
            raise ValueError(f"compress is {compress!r}: choose mlp or mean")
        self.learns_to_select = any(True for _ in self.compress.parameters())
        self.reset_gate()

    def reset_gate(self) -> None:
        """Start with the short-term path open and the long-term one nearly closed."""
        nn.init.zeros_(self.gate.weight)
        with torch.no_grad():
            self.gate.bias.copy_(torch.tensor(GATE_START).repeat(self.num_heads))

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        *,
        max_length: int | None = None,
        need_selector_loss: bool = False,
    ) -> AttentionOutput:
        """Attend within each packed history.

        Args:
            x: [T, D] packed events.
            cu_seqlens: int32 [B+1].
            max_length: longest history, in events; not needed here, taken so that every attention
                is called alike.
            need_selector_loss: also compute the loss that teaches the selector.
        """
        place = positions(cu_seqlens, len(x))
        q = rotate(self.query(x).unflatten(-1, (self.num_heads, self.head_dim)), place)
        k = rotate(self.key(x).unflatten(-1, (self.num_kv_heads, self.head_dim)), place)
        v = self.value(x).unflatten(-1, (self.num_kv_heads, self.head_dim))
        gates = self.gate(x).unflatten(-1, (self.num_heads, 2)).sigmoid()
        # The recommendation loss cannot reach the selector, the selector's must not reach the keys.
        block_keys = self.compress(k.detach(), cu_seqlens)
        out, selected = blossom_attention(
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
        loss = None
        if need_selector_loss and self.learns_to_select:
            loss = selector_loss(
                q,
                k,
                block_keys,
                selected,
                cu_seqlens,
                block_size=self.block_size,
                causal=self.causal,
            )
        return AttentionOutput(self.output(out.flatten(1)), loss, selected, gates)
