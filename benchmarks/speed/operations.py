"""Attention without the layer around it: what is timed, beside a definition to check it by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.speed.bench_options import BLOCK_SIZE, UNION, Layout
from benchmarks.speed.history_lengths import packed
from blossomrec.attention import BlossomSpec, blossom_attention
from blossomrec.attention.api import resolve
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.spec import Heads
from blossomrec.models.full import bucketed_attention, packed_attention
from blossomrec.training.state import seeded

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
TOP_N, WINDOW = 4, 8


@dataclass(frozen=True)
class Operation:
    """A function of its leaves, and what it should give for the same leaves in float64.

    Attributes:
        leaves: what gradients are asked for.
        selection: of Blossom attention, the blocks that an implementation selects from the leaves,
            int32 [T, G, n]; None elsewhere.
    """

    leaves: list[Tensor]
    function: Callable[..., Tensor]
    definition: Callable[..., Tensor]
    selection: Callable[[str], Tensor] | None = None

    def forward(self) -> Tensor:
        return self.function(*self.leaves)


def fusion_of(impl: str) -> str:
    """How the paths become one in the implementation of this name."""
    return "union" if impl.endswith(UNION) else "gated"


def random_heads(
    layout: Layout,
    lengths: tuple[int, ...],
    device: str,
    dtype: torch.dtype,
    gate_size: int = 2,
) -> list[Tensor]:
    """Random q [T, H, d], k and v [T, G, d], gates [T, H, 2 or 1], the same every time."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(heads: int, size: int) -> Tensor:
        rows = torch.randn(sum(lengths), heads, size, device=device, generator=generator)
        return rows.to(dtype)

    heads, kv_heads, size = layout
    tensors = [draw(count, size) for count in (heads, kv_heads, kv_heads)]
    return [*tensors, draw(heads, gate_size).sigmoid()]


def blossom(
    impl: str,
    compress: str,
    layout: Layout,
    lengths: tuple[int, ...],
    device: str,
    dtype: torch.dtype,
) -> Operation:
    """The whole operation: compress, select, attend, fuse. No gradient flows to block keys."""
    spec, impl = BlossomSpec(fusion=fusion_of(impl)), impl.removesuffix(UNION)
    cu_seqlens = packed(lengths, device)
    rows = random_heads(layout, lengths, device, dtype, spec.gate_size)
    leaves = [each.requires_grad_() for each in rows]
    with seeded(0):
        if compress == "mlp":
            compression = MLPCompression(
                head_dim=layout.head_dim, block_size=BLOCK_SIZE, window=2 * BLOCK_SIZE
            )
        else:
            compression = MeanCompression(block_size=BLOCK_SIZE)
    compression = compression.to(device, dtype).requires_grad_(False)
    heads = Heads(layout.heads, layout.kv_heads, layout.head_dim)
    parts = resolve(spec, heads, dtype, leaves[0].device.type, impl).parts

    def function(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
        keys = parts.block_keys(compression, k.detach(), cu_seqlens)
        return blossom_attention(q, k, v, keys, gates, cu_seqlens, spec, impl=impl)[0]

    @torch.no_grad()
    def selection(chosen_by: str) -> Tensor:
        keys = parts.block_keys(compression, leaves[1], cu_seqlens)
        rows = [*leaves[:3], keys, leaves[3]]
        if chosen_by == "reference":
            rows = [row.double() for row in rows]
        return blossom_attention(*rows, cu_seqlens, spec, impl=chosen_by.removesuffix(UNION))[1]

    def definition(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
        keys = k.new_zeros(len(k) // BLOCK_SIZE, *k.shape[1:])
        form = {"selected": selection(impl), "impl": "reference"}
        return blossom_attention(q, k, v, keys, gates, cu_seqlens, spec, **form)[0]

    return Operation(leaves, function, definition, selection)


def short_path(
    impl: str, layout: Layout, lengths: tuple[int, ...], device: str, dtype: torch.dtype
) -> Operation:
    """The short-term path: nothing is compressed or selected, its gate is open, the other shut.

    The kernels still attend to an event's own block, with weight 0.
    """
    cu_seqlens = packed(lengths, device)
    q, k, v, _ = random_heads(layout, lengths, device, dtype)
    nothing = torch.full((len(q), layout.kv_heads, TOP_N), -1, dtype=torch.int32, device=device)
    # Made here: what is captured as a graph may not copy from the host.
    short_alone = torch.tensor((0.0, 1.0), device=device).expand(*q.shape[:2], 2)

    def through(impl: str) -> Callable[..., Tensor]:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            gates = short_alone.to(q.dtype)
            keys = k.new_zeros(len(k) // BLOCK_SIZE, *k.shape[1:])
            form = {"selected": nothing, "impl": impl}
            return blossom_attention(q, k, v, keys, gates, cu_seqlens, **form)[0]

        return attend

    leaves = [each.requires_grad_() for each in (q, k, v)]
    return Operation(leaves, through(impl), through("reference"))


def flex_short_path(
    layout: Layout,
    lengths: tuple[int, ...],
    device: str,
    dtype: torch.dtype,
    *,
    compile: bool = True,
) -> Operation:
    """The short-term path by FlexAttention; histories are alike, a multiple of 128 events long."""
    from benchmarks.speed.flex import compiled_attention, power_law_mask

    leaves = _rectangles(layout, lengths, device, dtype)
    mask = power_law_mask(lengths[0], WINDOW, device)
    reference = short_path("reference", layout, lengths, device, dtype)

    def definition(*rows: Tensor) -> Tensor:
        flat = [row.transpose(1, 2).flatten(0, 1) for row in rows]
        out = reference.definition(*flat)
        return out.unflatten(0, (len(lengths), -1)).transpose(1, 2)

    return Operation(leaves, compiled_attention(mask, compile=compile), definition)


def dense(
    impl: str, layout: Layout, lengths: tuple[int, ...], device: str, dtype: torch.dtype
) -> Operation:
    """Causal attention to everything before, by a fused kernel; histories are alike.

    Args:
        impl: "cudnn", "flash", or "dense" for whichever PyTorch takes.
    """
    grouped = layout.heads != layout.kv_heads
    backends = BACKENDS.get(impl, list(SDPBackend.__members__.values()))

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backends):
            return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    return Operation(_rectangles(layout, lengths, device, dtype), function, _exact_dense)


def naive(layout: Layout, lengths: tuple[int, ...], device: str, dtype: torch.dtype) -> Operation:
    """Causal attention with all scores in memory; histories are alike."""
    leaves = _rectangles(layout, lengths, device, dtype)
    mask = causal_mask(lengths[0], device, dtype)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return naive_attention(q, k, v, mask)

    return Operation(leaves, function, _exact_dense)


def ragged_dense(
    layout: Layout, lengths: tuple[int, ...], device: str, dtype: torch.dtype
) -> Operation:
    """Causal attention within packed histories of any lengths, as ``FullAttention`` does it."""
    cu_seqlens, longest = packed(lengths, device), max(lengths)
    attend = packed_attention if device == "cuda" and dtype.itemsize == 2 else bucketed_attention
    leaves = random_heads(layout, lengths, device, dtype)[:3]

    def definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(*(row.transpose(0, 1).split(lengths, 1) for row in (q, k, v)), strict=True)
        outputs = [_exact_dense(q[None], k[None], v[None])[0] for q, k, v in parts]
        return torch.cat(outputs, 1).transpose(0, 1)

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, cu_seqlens, longest, True)

    return Operation([each.requires_grad_() for each in leaves], function, definition)


def causal_mask(length: int, device: str, dtype: torch.dtype) -> Tensor:
    """[L, L], added to scores: 0 for what is seen and a large negative number for the rest."""
    later = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    return torch.zeros(length, length, device=device, dtype=dtype).masked_fill(later, -10_000.0)


def naive_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Product, mask, softmax, dropout, product, each step with its own L x L result.

    Args:
        q: [B, H, L, d].
        k, v: [B, G, L, d].
        mask: [L, L], added to the scores.
        dropout: share of the attention that is dropped.

    Returns:
        [B, H, L, d].
    """
    if q.shape[1] != k.shape[1]:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + mask
    return torch.nn.functional.dropout(scores.softmax(-1), dropout) @ v


def _rectangles(
    layout: Layout, lengths: tuple[int, ...], device: str, dtype: torch.dtype
) -> list[Tensor]:
    """q, k and v as the kernels like them best: [B, heads, L, d], without gaps."""
    rows = random_heads(layout, lengths, device, dtype)[:3]
    shaped = (row.unflatten(0, (len(lengths), -1)).transpose(1, 2).contiguous() for row in rows)
    return [row.requires_grad_() for row in shaped]


def _exact_dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
        )
