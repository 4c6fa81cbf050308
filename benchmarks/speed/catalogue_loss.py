"""The exact softmax over a large catalogue, forward and backward, beside other kernels.

    python -m benchmarks loss --out results/speed.jsonl

Item vectors are parameters in float32, cast to bfloat16 as a training does; their gradient is
float32 again. No implementation can leave out three matrix products: the floor is their operations
at the rate that the matrix library reaches on this device with a large square product, and
``products`` are these three by that library, with logits in memory. Liger's kernels and those of
cut-cross-entropy are measured where they are installed. Each line says how far loss and gradients
are from their definition in float64. It needs neither polars nor cyclopts:

    from benchmarks.speed.catalogue_loss import measure_loss
    measure_loss(items=[50_000], rows=[8_192])
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.results import append_result, provenance
from benchmarks.speed.instruments.memory import peak_mib
from benchmarks.speed.instruments.timing import milliseconds
from blossomrec.errors import BlossomRecError
from blossomrec.losses import cross_entropy

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
OURS, PRODUCTS = "blossomrec", "products"
# Rows and columns of the product that shows the rate of a device.
SQUARE = {"cpu": 1_024, "cuda": 8_192}
# Logits of a product that are in memory at a time.
CHUNK = 1 << 33
# Of rounding to 16 bits, of the largest gradient.
TOLERANCE = 2e-2
# What loss and gradients are compared on.
CHECKED = {"rows": 1_024, "items": 20_011}


@dataclass(frozen=True)
class Problem:
    """Predictions, item vectors as a training has them, and targets."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor

    @staticmethod
    def of(rows: int, items: int, size: int, device: str) -> Problem:
        generator = torch.Generator(device).manual_seed(0)
        hidden = torch.randn(rows, size, generator=generator, device=device).bfloat16()
        weight = torch.randn(items, size, generator=generator, device=device) * size**-0.5
        targets = torch.randint(items, (rows,), generator=generator, device=device)
        return Problem(hidden.requires_grad_(), weight.requires_grad_(), targets)

    def step(self, loss: Loss) -> list[Tensor]:
        """Loss and gradients."""
        value = loss(self.hidden, self.weight, self.targets)
        return [value.detach(), *torch.autograd.grad(value, [self.hidden, self.weight])]


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    with torch.autocast(hidden.device.type, torch.bfloat16):
        return cross_entropy(hidden, weight, targets)


def losses() -> dict[str, Loss]:
    """Those that can be measured here, by name."""
    found: dict[str, Loss] = {OURS: ours}
    with suppress(ImportError):
        fused = import_module("liger_kernel.ops.fused_linear_cross_entropy")
        found["liger"] = partial(_liger, fused.LigerFusedLinearCrossEntropyFunction)
    with suppress(ImportError):
        cut = import_module("cut_cross_entropy").linear_cross_entropy
        # It leaves out gradients below the precision of bfloat16 unless told not to.
        for name, filters in (("cut-cross-entropy", "high"), ("cut-cross-entropy, all", None)):
            found[name] = partial(_cut_cross_entropy, cut, filters)
    return found


def _liger(function: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return function.apply(hidden, weight.bfloat16(), targets)[0]


def _cut_cross_entropy(
    loss: Any, filters: str | None, hidden: Tensor, weight: Tensor, targets: Tensor
) -> Tensor:
    return loss(hidden, weight.bfloat16(), targets, filter_eps=filters)


def products(problem: Problem) -> None:
    """Logits and, as if they were their own gradients, the gradients of both sides."""
    hidden, weight = problem.hidden.detach(), problem.weight.detach().bfloat16()
    height = max(1, CHUNK // len(weight))
    for start in range(0, len(hidden), height):
        part = hidden[start : start + height]
        logits = part @ weight.T
        _ = logits @ weight, logits.T @ part


def error(loss: Loss, device: str, size: int) -> float:
    """Largest error of loss and gradients, as a share of their largest value by definition."""
    problem = Problem.of(CHECKED["rows"], CHECKED["items"], size, device)
    exact = [
        each.detach().double().requires_grad_()
        for each in (problem.hidden, problem.weight.detach().bfloat16())
    ]
    expected = F.cross_entropy(exact[0] @ exact[1].T, problem.targets)
    wanted = [expected.detach(), *torch.autograd.grad(expected, exact)]
    return max(
        float((value.double() - other).abs().max() / other.abs().max())
        for value, other in zip(problem.step(loss), wanted, strict=True)
    )


def product_rate(device: str) -> float:
    """Operations in a second of a large square product in bfloat16."""
    side = SQUARE[device]
    one, other = torch.randn(2, side, side, device=device, dtype=torch.bfloat16).unbind()
    return 2e3 * side**3 / milliseconds(lambda: one @ other, device)


def lines(
    rows: int, items: int, size: int, device: str, rate: float, errors: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """A line of each implementation, its time beside the floor of the same run.

    Args:
        rate: of :func:`product_rate`.
        errors: of the implementations, by name.
    """
    problem = Problem.of(rows, items, size, device)
    floor = 1e3 * 3 * 2 * rows * items * size / rate
    runs = {PRODUCTS: partial(products, problem)}
    runs |= {name: partial(problem.step, loss) for name, loss in losses().items()}
    for name, run in runs.items():
        time = milliseconds(run, device)
        yield {
            "bench": "loss",
            "impl": name,
            "rows": rows,
            "items": items,
            "hidden": size,
            "dtype": "bfloat16",
            "forward_backward_ms": round(time, 4),
            "floor_ms": round(floor, 4),
            "product_tflops": round(rate / 1e12, 1),
            "peak_mib": round(peak_mib(run, device), 1),
            "error": errors.get(name),
            **provenance(device),
        }


def measure_loss(
    *,
    items: list[int] | None = None,
    rows: list[int] | None = None,
    sizes: list[int] | None = None,
    out: Path | None = None,
) -> None:
    """Time and memory of the exact softmax over a catalogue, beside its matrix products.

    Args:
        items: sizes of the catalogue; 50,000 and 1,000,000 without it
        rows: predictions of a step; 8,192 and 65,536 without it
        sizes: of the vectors; 128 without it
        out: JSONL file to which a line for each measurement is appended

    Raises:
        BlossomRecError: loss or gradients are wrong; nothing is timed.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rate = product_rate(device)
    for size in sizes or [128]:
        errors = {name: round(error(loss, device, size), 5) for name, loss in losses().items()}
        if not errors[OURS] < TOLERANCE:
            raise BlossomRecError(f"the loss is {errors[OURS]:.1e} away from its definition")
        for count in items or [50_000, 1_000_000]:
            for height in rows or [8_192, 65_536]:
                for line in lines(height, count, size, device, rate, errors):
                    print(json.dumps(line), flush=True)
                    if out is not None:
                        append_result(out, line)
