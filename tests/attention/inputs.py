"""Random packed inputs of the operation."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from blossomrec.attention import BlossomAttention, BlossomSpec, blossom_attention

AWKWARD = (1, 15, 16, 17, 31, 32, 33, 79, 80, 81, 333)


@dataclass
class Inputs:
    q: Tensor
    k: Tensor
    v: Tensor
    block_keys: Tensor
    gates: Tensor
    cu_seqlens: Tensor

    def all(self):
        return self.q, self.k, self.v, self.block_keys, self.gates, self.cu_seqlens

    def differentiable(self):
        return tuple(x.requires_grad_() for x in (self.q, self.k, self.v, self.gates))

    def to(self, device=None, dtype=None):
        """Copies elsewhere; the type is that of all but ``cu_seqlens``."""
        *floating, cu_seqlens = (x.detach().to(device) for x in self.all())
        return Inputs(*(x.to(dtype) for x in floating), cu_seqlens)

    def history(self, number, block_size=16):
        """The inputs of one history alone."""
        bounds = self.cu_seqlens.tolist()
        blocks = [0]
        for start, end in pairwise(bounds):
            blocks.append(blocks[-1] + (end - start) // block_size)
        rows = slice(bounds[number], bounds[number + 1])
        return Inputs(
            self.q[rows],
            self.k[rows],
            self.v[rows],
            self.block_keys[blocks[number] : blocks[number + 1]],
            self.gates[rows],
            torch.tensor([0, rows.stop - rows.start], dtype=torch.int32),
        )


def random_inputs(
    lengths,
    *,
    heads=4,
    groups=2,
    size=8,
    block_size=16,
    fusion="gated",
    dtype=torch.float32,
    seed=0,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    total = int(cu_seqlens[-1])
    blocks = sum(length // block_size for length in lengths)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return Inputs(
        draw(total, heads, size),
        draw(total, groups, size),
        draw(total, groups, size),
        draw(blocks, groups, size),
        draw(total, heads, 1) if fusion == "union" else draw(total, heads, 2).sigmoid(),
        cu_seqlens,
    )


def relative_error(value: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact value."""
    difference = (value.double() - exact.double()).norm()
    return float(difference / exact.double().norm().clamp(min=1e-30))


def attend(*rows, selected=None, impl="auto", **spec):
    """The operation with parts of its definition by name."""
    return blossom_attention(*rows, BlossomSpec(**spec), selected=selected, impl=impl)


def make_layer(*, hidden_size=32, num_heads=4, num_kv_heads=2, impl="auto", **spec):
    """A seeded layer with parts of its definition by name."""
    torch.manual_seed(0)
    return BlossomAttention(
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        spec=BlossomSpec(**spec),
        impl=impl,
    )
