"""Blossom attention as a layer: projections, rotary embedding, compression, gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from blossomrec.attention.api import blossom_attention, resolve
from blossomrec.attention.backends import Backend
from blossomrec.attention.backends.parts import Extension, Projections
from blossomrec.attention.compress import build_compression
from blossomrec.attention.spec import BlossomSpec, Heads, Target
from blossomrec.attention.state import KeepsStates, Layout, PagedLayer, Step

# The gate starts short-term: sigmoid(-2) = 0.12 long, sigmoid(2) = 0.88 short.
GATE_START = (-2.0, 2.0)
# Weights of the two paths where one is left out.
FIXED_GATES = {"long": (1.0, 0.0), "short": (0.0, 1.0)}


@dataclass(frozen=True)
class AttentionOutput:
    """What an attention layer gives.

    Attributes:
        hidden: [T, D].
        selector_loss: scalar, the distillation loss of the selector; None where it is not computed.
        selected: int32 [T, G, n] selected blocks, -1 for none; None for dense attention.
        gates: [T, H, 2] weights of the long and short path, or [T, H, 1], the bias of a union; None
            for dense attention.
    """

    hidden: Tensor
    selector_loss: Tensor | None = None
    selected: Tensor | None = None
    gates: Tensor | None = None


class _Prepared(NamedTuple):
    """What extends a layer as long as all that it was made of is the same.

    Making it takes longer than attending from one event.

    Attributes:
        extend: the extension.
        gated: whether the gates are among the weights.
        asked: type of the events, definition, implementation and compression.
        held: module, name, parameter and address of each weight.
    """

    extend: Extension
    gated: bool
    asked: tuple[torch.dtype, BlossomSpec, str, nn.Module]
    held: list[tuple[str, str, Tensor, int]]

    def fits(self, attention: BlossomAttention, x: Tensor) -> bool:
        """Whether it still extends the layer: weights where they were and as they lay, the same
        definition and type of events, on a CPU, without autocast."""
        dtype, spec, impl, compression = self.asked
        modules = cast(dict[str, nn.Module], attention._modules)
        if x.dtype is not dtype or not x.is_cpu or torch.is_autocast_enabled("cpu"):
            return False
        if attention.spec is not spec or attention.impl is not impl:
            return False
        if modules["compress"] is not compression:
            return False
        for module, name, weight, address in self.held:
            found = modules[module]._parameters.get(name)
            if found is not weight or weight.data_ptr() != address or not weight.is_contiguous():
                return False
        return True


class BlossomAttention(nn.Module, KeepsStates):
    """Block-level fused sparse attention over packed histories (BlossomRec, arXiv 2512.13368).

    Args:
        hidden_size: D, a multiple of ``num_heads``.
        num_heads: H query heads.
        num_kv_heads: G key/value heads, dividing H; the heads of a group select together.
        spec: the definition of the operation; its defaults where it is None.
        impl: see :func:`blossomrec.attention.blossom_attention`. "reference" and "torch" keep all
            fused kernels out of the layer.

    Raises:
        ValueError: sizes do not fit each other.

    Example:
        >>> layer = BlossomAttention(hidden_size=64, num_heads=4, num_kv_heads=2)
        >>> layer(torch.randn(50, 64), torch.tensor([0, 20, 50], dtype=torch.int32)).hidden.shape
        torch.Size([50, 64])
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        spec: BlossomSpec | None = None,
        impl: str = "auto",
    ):
        super().__init__()
        if hidden_size % num_heads or num_heads % num_kv_heads or hidden_size // num_heads % 2:
            raise ValueError(
                f"hidden_size {hidden_size}, num_heads {num_heads}, num_kv_heads {num_kv_heads}: "
                "each must be a multiple of the next, with an even hidden_size / num_heads"
            )
        self.spec, self.impl = spec or BlossomSpec(), impl
        self.heads = Heads(num_heads, num_kv_heads, hidden_size // num_heads)
        size = self.heads.size
        self.query = nn.Linear(hidden_size, num_heads * size, bias=False)
        self.key = nn.Linear(hidden_size, num_kv_heads * size, bias=False)
        self.value = nn.Linear(hidden_size, num_kv_heads * size, bias=False)
        self.output = nn.Linear(num_heads * size, hidden_size, bias=False)
        self.compress = build_compression(self.spec, size)
        numbers = num_heads * len(_gate_start(self.spec))
        self.gate = nn.Linear(hidden_size, numbers) if self.spec.is_gated else None
        self._prepared: _Prepared | None = None
        self.reset_gate()

    def reset_gate(self) -> None:
        """Start with the short-term path open and the long-term one nearly closed.

        A union starts without any bias: as dense attention, where everything is selected.
        """
        if self.gate is None:
            return
        nn.init.zeros_(self.gate.weight)
        with torch.no_grad():
            start = torch.tensor(_gate_start(self.spec)).repeat(self.heads.queries)
            self.gate.bias.copy_(start)

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        *,
        max_length: int | None = None,
        distil_rows: Tensor | None = None,
        rotary: Tensor | None = None,
    ) -> AttentionOutput:
        """Attend within each packed history.

        Args:
            x: [T, D] packed events.
            cu_seqlens: int32 [B+1].
            max_length: longest history, in events; looked up where it is not given and needed.
            distil_rows: int64 [C], rising: packed rows of the events from which the distillation of
                the selector may sample; T, which is no row, may fill up the end. None: it is not
                computed.
            rotary: [T, 2, pairs], cosine and sine of the angles that queries and keys are rotated
                by; None for those of their positions.
        """
        backend = self.backend(x)
        q, k, v, gates = self.project(x, cu_seqlens, rotary)
        block_keys = backend.parts.keys_to_choose_by(self.compress, k, cu_seqlens, self.spec)
        out, selected = self.attend(q, k, v, block_keys, gates, cu_seqlens, backend)
        loss = None
        if distil_rows is not None and self.spec.selects:
            if max_length is None:
                max_length = int(cu_seqlens.diff().max())
            given = {"rows": distil_rows, "max_length": max_length}
            loss = self.distil(q, k, block_keys, cu_seqlens, backend, **given)
        return AttentionOutput(self.output(out.flatten(1)), loss, selected, gates)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        block_keys: Tensor,
        gates: Tensor,
        cu_seqlens: Tensor,
        backend: Backend,
    ) -> tuple[Tensor, Tensor]:
        """The operation: output [T, H, d] and selected blocks; for a subclass to change."""
        rows = (q, k, v, block_keys.detach(), gates)
        return blossom_attention(*rows, cu_seqlens, self.spec, impl=backend)

    def distil(
        self,
        q: Tensor,
        k: Tensor,
        block_keys: Tensor,
        cu_seqlens: Tensor,
        backend: Backend,
        **given: Any,
    ) -> Tensor | None:
        """The distillation loss of the selector, sampled from ``rows``; for a subclass to change.

        Args:
            given: rows and max_length, see :func:`blossomrec.attention.selector.selector_loss`.
        """
        return backend.parts.selector_loss(q, k, block_keys, cu_seqlens, spec=self.spec, **given)

    def backend(self, x: Tensor) -> Backend:
        """What computes this layer for inputs like x, [T, D]."""
        kind = "cpu" if x.is_cpu else x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        return resolve(self.spec, self.heads, dtype, kind, self.impl)

    def project(
        self, x: Tensor, cu_seqlens: Tensor, rotary: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rotated queries [T, H, d] and keys [T, G, d], values [T, G, d], and gates.

        Gates are [T, H, 2], or the bias of a union, [T, H, 1].
        """
        weights, parts = self._projections(), self.backend(x).parts
        q, k, v, gates = parts.project(x, weights, cu_seqlens, self.heads, self.spec, rotary)
        return q, k, v, self._fixed_gates(q) if gates is None else gates

    def block_keys(self, k: Tensor, cu_seqlens: Tensor) -> Tensor:
        """Keys of all complete blocks, [J, G, d], of rotated keys [T, G, d]; see ``compress``."""
        return self.backend(k.flatten(1)).parts.block_keys(self.compress, k, cu_seqlens)

    def _projections(self) -> Projections:
        own = self._modules
        query, key, value = own["query"], own["key"], own["value"]
        return Projections(
            _parameter(query, "weight"),
            _parameter(key, "weight"),
            _parameter(value, "weight"),
            *self._gate_parameters(),
        )

    def _fixed_gates(self, x: Tensor) -> Tensor:
        """Of one path alone, in the type of x, [T, H, 2]; of a union without bias [T, H, 1]."""
        # Filled on the device, so that a CUDA graph can be captured.
        if self.spec.is_union:
            return x.new_zeros(len(x), self.heads.queries, 1)
        weights = FIXED_GATES[self.spec.paths]
        shares = [x.new_full((len(x), self.heads.queries), weight) for weight in weights]
        return torch.stack(shares, -1)

    def _gate_parameters(self) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Weight [2 * H, D] and bias [2 * H] of what the sigmoids of the two paths are taken of.

        Of a union [H, D] and [H].
        """
        gate = self._modules.get("gate")
        if gate is None:
            return None, None
        weight, bias = _parameter(gate, "weight"), _parameter(gate, "bias")
        if self.spec.is_union or self.spec.gate == "independent":
            return weight, bias
        # sigmoid(-z) is 1 - sigmoid(z).
        weight, bias = (torch.stack((x, -x), 1).flatten(0, 1) for x in (weight, bias))
        return weight, bias

    @property
    def layout(self) -> Layout:
        """Of the states of this attention.

        Raises:
            ValueError: the attention is bidirectional, so that a new event changes all old ones.
        """
        if not self.spec.causal:
            raise ValueError("causal is False: only causal attention can be extended")
        weight, spec, heads = _parameter(self._modules["key"], "weight"), self.spec, self.heads
        sizes = spec.block_size, spec.keys_of_block, heads.keys, heads.size
        return Layout(*sizes, weight.dtype, weight.device)

    @property
    def captures_steps(self) -> bool:
        """Whether :meth:`extend_paged` never waits for the device, as a CUDA graph needs it."""
        weight = self.key.weight
        target = Target(self.spec, self.heads, weight.dtype, weight.device.type)
        return self.backend(weight).parts.captures_steps(target)

    def extend_paged(
        self, x: Tensor, layer: PagedLayer, step: Step, rotary: Tensor | None = None
    ) -> AttentionOutput:
        """Attend from new events of many users.

        Nothing waits for the device where the kernels are used, and each user has one event.

        Args:
            x: [E, D], the events of ``step``, in its order.
            layer: this layer's pages, of the :class:`PagedStates` that made ``step``; changed.
            step: where the events go.
            rotary: as of :meth:`forward`.
        """
        # Entering no_grad takes as long as a projection.
        if not torch.is_grad_enabled():
            return self._extended(x, layer, step, rotary)
        with torch.no_grad():
            return self._extended(x, layer, step, rotary)

    def _extended(
        self, x: Tensor, layer: PagedLayer, step: Step, rotary: Tensor | None
    ) -> AttentionOutput:
        prepared = self._prepared
        if prepared is None or not prepared.fits(self, x):
            prepared = self._prepare(x)
        gates = None if prepared.gated else self._fixed_gates(x)
        hidden, selected, gates = prepared.extend(x, gates, layer, step, rotary)
        return AttentionOutput(hidden, None, selected, gates)

    def _prepare(self, x: Tensor) -> _Prepared:
        """What extends this layer for events like x, [E, D]; kept where it may be."""
        weights, own = self._projections(), cast(dict[str, Any], self._modules)
        output, gated = _parameter(own["output"], "weight"), weights.gate is not None
        given = weights, output, self.heads, own["compress"], self.spec
        names = [(name, "weight") for name in ("query", "key", "value", "output")]
        names += [("gate", "weight"), ("gate", "bias")] if gated else []
        found = [_parameter(own[module], name) for module, name in names]
        prepared = _Prepared(
            self.backend(x).parts.extension(*given),
            gated,
            (x.dtype, self.spec, self.impl, own["compress"]),
            [(*each, w, w.data_ptr()) for each, w in zip(names, found, strict=True)],
        )
        used = [each for each in (*weights, output) if each is not None]
        # Where something is made of the weights, it is to be made anew each time.
        as_they_are = {*map(id, used)} == {*map(id, found)} and all(
            each.is_contiguous() for each in used
        )
        if as_they_are and prepared.fits(self, x):
            self._prepared = prepared
        return prepared

    def __getstate__(self) -> dict[str, Any]:
        # What is prepared is for these weights where they are.
        return self.__dict__ | {"_prepared": None}

    @torch.no_grad()
    def prefill(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        layer: PagedLayer,
        step: Step,
        rotary: Tensor | None = None,
    ) -> AttentionOutput:
        """Attend within whole histories, as :meth:`forward` does, and keep them in pages.

        Args:
            x: [T, D] packed events, those of ``step``, in its order.
            cu_seqlens: int32 [B+1].
            layer: this layer's pages, of the :class:`PagedStates` that made ``step``; changed.
            step: where the events go; all users are without events before it.
        """
        backend = self.backend(x)
        q, k, v, gates = self.project(x, cu_seqlens, rotary)
        block_keys = backend.parts.block_keys(self.compress, k, cu_seqlens)
        layer.write(k, v, block_keys, step)
        out, selected = self.attend(q, k, v, block_keys, gates, cu_seqlens, backend)
        return AttentionOutput(self.output(out.flatten(1)), None, selected, gates)


def _parameter(module: nn.Module | None, name: str) -> Tensor:
    """A module's parameter, without the attribute look-up, which for one event takes as long as the
    attention. What is computed, as by a parametrization, is looked up as usual."""
    assert module is not None
    found = module._parameters.get(name)
    return getattr(module, name) if found is None else found


def _gate_start(spec: BlossomSpec) -> tuple[float, ...]:
    """Where the numbers start that a head's gate is made of: two, or one if they sum up to 1."""
    if spec.is_union:
        return (0.0,)
    return GATE_START if spec.gate == "independent" else GATE_START[:1]
