"""Two layers of the published size (hidden 128, inner 256, post-norm, dropout 0.2), and on a GPU
of hidden 256 with heads of 64.

A training step is forward and backward over a batch met for the first time, so that what depends on
its lengths is computed anew; for Blossom attention with distillation of its selector and without.
Inference is forward alone. On a GPU both are measured once more as CUDA graphs, for the device's
work without the host's. Weights are float32; in 16 bits autocast chooses, as it does in training.
The peer ``naive`` is always float32; ``linrec`` has its heads, ``mamba``, that of Mamba4Rec, none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from benchmarks.speed.architectures import (
    LINEAR,
    NAIVE_LAYOUT,
    Architecture,
    architectures,
    graph_choices,
    naive_layers,
    wide_architectures,
)
from benchmarks.speed.bench_options import ONLY_16_BITS, BenchOptions, is_blossom
from benchmarks.speed.history_lengths import equal_lengths, packed
from benchmarks.speed.instruments.memory import free_bytes, peak_mib
from benchmarks.speed.instruments.parity import Check, largest_error
from benchmarks.speed.instruments.timing import graph_milliseconds, milliseconds
from benchmarks.speed.speed_lines import Line, result_line
from blossomrec.attention.memo import of_one_graph
from blossomrec.models.sasrec import SASRec
from blossomrec.models.transformer import TransformerLayer
from blossomrec.training.state import seeded

LENGTHS = {"cpu": (256, 1_024, 4_096), "cuda": (128, 512, 1_024, 4_096, 16_384, 65_536)}
TOKENS = {"cpu": 8_192, "cuda": 131_072}
DTYPE = {"cpu": "float32", "cuda": "bfloat16"}
# Copies of a layer's scores that a training step keeps for its backward pass.
NAIVE_COPIES = 3
# Of two layers, in which a difference of the first can change a choice in the second.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

# What tells lines of the same machine and code apart.
KEY = ("length", "impl", "compress", "heads", "kv_heads", "head_dim", "lessons", "graph")


@dataclass(frozen=True)
class Case:
    """An attention, the length of histories, whether its selector is distilled, and by graphs."""

    architecture: Architecture
    length: int
    distils: bool
    graph: bool = False

    @property
    def impl(self) -> str:
        return self.architecture.impl

    @property
    def key(self) -> tuple[Any, ...]:
        """What its line has for KEY."""
        form = self.architecture
        return self.length, form.impl, form.compress, *form.layout, self.distils, self.graph


class Encoder(NamedTuple):
    """Layers, their input [T, D] and where its histories start."""

    layers: nn.ModuleList
    x: Tensor
    cu_seqlens: Tensor
    length: int
    dtype: torch.dtype

    def run(self, distils: bool) -> list[Tensor]:
        """Hidden states [T, D] as the layers give them, and each layer's distillation loss."""
        # Copied, so that nothing is known of its lengths.
        cu_seqlens = of_one_graph(self.cu_seqlens.clone())
        rows = torch.arange(len(self.x), device=self.x.device) if distils else None
        x, losses = self.x, []
        with _precision(self.x.device.type, self.dtype):
            for layer in self.layers:
                x, attended = layer(x, cu_seqlens, self.length, distil_rows=rows)
                x = cast(TransformerLayer, layer).finish(x)
                if attended.selector_loss is not None:
                    losses.append(attended.selector_loss)
        return [x, *losses]

    def step(self, distils: bool) -> tuple[Tensor, ...]:
        """Gradients of the input and all parameters; None where one took no part."""
        results = self.run(distils)
        leaves = [self.x, *self.layers.parameters()]
        weights = [torch.ones_like(result) for result in results]
        return torch.autograd.grad(results, leaves, weights, allow_unused=True)

    @torch.no_grad()
    def infer(self) -> Tensor:
        return self.run(False)[0]


def cases(options: BenchOptions) -> list[Case]:
    """All that is to be measured, by rising length."""
    others = (*LINEAR, "naive")
    known = [
        *architectures(options),
        *wide_architectures(options),
        *(Architecture(name, "none", NAIVE_LAYOUT) for name in others),
    ]
    return [
        Case(each, length, distils, graph)
        for length in options.lengths
        for each in known
        for distils in ((False, True) if is_blossom(each.impl) else (False,))
        for graph in graph_choices(each, options)
        if options.wants(each.impl)
    ]


def checks(options: BenchOptions) -> Iterator[Check]:
    """Hidden states and gradients of the input, beside the reference or fused dense attention.

    Blossom attention is compared in float32 where it can be: in 16 bits rounding decides between
    blocks that are chosen for scores almost equal, and a layer later between others.
    """
    for architecture in dict.fromkeys(case.architecture for case in cases(options)):
        exact = is_blossom(architecture.impl) or architecture.impl in (*LINEAR, "naive")
        exact &= architecture.impl not in ONLY_16_BITS
        dtype = torch.float32 if exact else options.dtype
        encoder = build(architecture, 256, (256, 256), options.device, dtype)
        definition = _definition(encoder, architecture)
        error = largest_error(_measured(encoder), _measured(definition))
        name = f"encoder with {architecture.impl} {architecture.compress}"
        yield Check(name, error, TOLERANCE[dtype])


def measure(case: Case, options: BenchOptions) -> Line | None:
    """One line of results; None where the scores would not fit."""
    architecture, device = case.architecture, options.device
    lengths = equal_lengths(case.length, options.tokens)
    dtype = torch.float32 if case.impl == "naive" else options.dtype
    if case.impl == "naive" and not _scores_fit(case.length, lengths, device):
        return None
    encoder = build(architecture, case.length, lengths, device, dtype)

    def step() -> Any:
        return encoder.step(case.distils)

    encoder.layers.eval()
    inference_mib, forward_ms = _cost(encoder.infer, device, case.graph)
    encoder.layers.train()
    memory, forward_backward_ms = _cost(step, device, case.graph)
    return result_line(
        "encoder",
        architecture.impl,
        architecture.layout,
        length=case.length,
        tokens=sum(lengths),
        dtype=dtype,
        device=device,
        compress=architecture.compress,
        forward_ms=forward_ms,
        forward_backward_ms=forward_backward_ms,
        peak_mib=memory,
        inference_peak_mib=round(inference_mib, 1),
        lessons=case.distils,
        graph=case.graph,
    )


def _cost(run: Callable[[], Any], device: str, graph: bool) -> tuple[float, float]:
    """MiB, and milliseconds, of a call."""
    # Once before: what is compiled, planned or loaded once does not count.
    run()
    memory = peak_mib(run, device)
    return memory, graph_milliseconds(run) if graph else milliseconds(run, device)


def build(
    architecture: Architecture,
    length: int,
    lengths: tuple[int, ...],
    device: str,
    dtype: torch.dtype,
    *,
    reference: bool = False,
) -> Encoder:
    """The two layers with seeded weights and input."""
    with seeded(0):
        layers = SASRec(architecture.config(length, reference=reference), 1).layers
        if architecture.impl == "naive" and not reference:
            layers = naive_layers(layers)
    generator = torch.Generator(device).manual_seed(0)
    size = architecture.layout.hidden_size
    x = torch.randn(sum(lengths), size, device=device, generator=generator).requires_grad_()
    return Encoder(layers.to(device), x, packed(lengths, device), length, dtype)


def _definition(encoder: Encoder, architecture: Architecture) -> Encoder:
    """The reference with the same weights and input, in float32."""
    lengths = tuple(encoder.cu_seqlens.diff().tolist())
    device = encoder.x.device.type
    definition = build(architecture, encoder.length, lengths, device, torch.float32, reference=True)
    definition.layers.load_state_dict(encoder.layers.state_dict())
    return definition


def _measured(encoder: Encoder) -> list[Tensor]:
    """Hidden states, and the gradient of the input from all of them, without dropout."""
    encoder.layers.eval()
    hidden = encoder.run(False)[0].float()
    weights = torch.linspace(-1, 1, hidden.shape[-1], device=hidden.device)
    return [hidden, *torch.autograd.grad(hidden, [encoder.x], weights.expand_as(hidden))]


def _precision(device: str, dtype: torch.dtype) -> AbstractContextManager:
    return torch.autocast(device, dtype, enabled=dtype != torch.float32)


def _scores_fit(length: int, lengths: tuple[int, ...], device: str) -> bool:
    scores = len(lengths) * NAIVE_LAYOUT.heads * length**2 * 4
    return 2 * NAIVE_COPIES * scores < free_bytes(device)
