"""What the operation cannot be faster than on a device: bytes it must move over measured rates.

Two limits are computed, each as bytes over bytes a second, and the higher one is the floor.

*Device memory.* Each input is read and each output written once. Forward: q, k, v and gates in, the
output out. Backward: those, the output and its gradient in, four gradients out. The rate is that of
a copy between two large tensors, measured in the same run, reads and writes both counted.

*Gather.* Every event fetches, for every key/value head, the keys and values of the blocks it
selects (at most ``top_n``, fewer at the start of a history) and of the far powers of two; what
neighbouring events share, their own block and the window, is not counted. Backward fetches them
again for the gradient of the queries, and for the gradient of the keys each choice and each far
distance once fetches the query and the gradient of the output of R heads. The rate is that of a
kernel that does nothing but fetch random blocks of each event's own history (``gather.py``); it is
measured on a GPU alone. Without it, on a CPU, the floor is that of memory.

No kernel that serves neighbouring events from the first-level cache is bound by the second limit,
so it is one for choices without order, such as random keys make.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.speed.bench_options import Layout
from benchmarks.speed.history_lengths import packed
from benchmarks.speed.instruments.timing import milliseconds
from benchmarks.speed.operations import BLOCK_SIZE, TOP_N, WINDOW
from blossomrec.attention.pattern import NearPattern

# Bytes of each of the two tensors of the copy: more than caches hold.
COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}


@dataclass(frozen=True)
class Volume:
    """Bytes that must be moved, forward and backward, through memory and by the gather."""

    memory_forward: int
    memory_backward: int
    gather_forward: int
    gather_backward: int

    @staticmethod
    def of(lengths: tuple[int, ...], layout: Layout, itemsize: int) -> Volume:
        heads, kv_heads, size = layout
        events = sum(lengths)
        queries, keys = events * heads * size * itemsize, events * kv_heads * size * itemsize
        gates = events * heads * 2 * itemsize
        choices, far = _choices(lengths), _far(lengths)
        row = 2 * size * itemsize
        fetched = kv_heads * (choices * BLOCK_SIZE + far) * row
        return Volume(
            memory_forward=2 * queries + 2 * keys + gates,
            memory_backward=4 * queries + 4 * keys + 2 * gates,
            gather_forward=fetched,
            gather_backward=fetched + heads * (choices + far) * row,
        )


def floor_milliseconds(
    lengths: tuple[int, ...], layout: Layout, dtype: torch.dtype, device: str
) -> dict[str, float]:
    """Forward, forward and backward together in ms, and the rates in TB/s they follow from."""
    volume = Volume.of(lengths, layout, dtype.itemsize)
    memory = copy_rate(device)
    rates = {"copy_tb_s": round(memory / 1e12, 4)}
    forward, backward = volume.memory_forward / memory, volume.memory_backward / memory
    both = forward + backward
    if device == "cuda":
        from benchmarks.speed.instruments.gather import gather_rate

        form = {"block_size": BLOCK_SIZE, "top_n": TOP_N}
        rate = gather_rate(packed(lengths, device), sum(lengths), layout, dtype, **form)
        rates["gather_tb_s"] = round(rate / 1e12, 4)
        forward = max(forward, volume.gather_forward / rate)
        both = max(both, (volume.gather_forward + volume.gather_backward) / rate)
    return {"forward_ms": 1e3 * forward, "forward_backward_ms": 1e3 * both, **rates}


def floor_mib(lengths: tuple[int, ...], layout: Layout, itemsize: int) -> float:
    """Memory of what must exist besides the inputs: the output and the four gradients."""
    heads, kv_heads, size = layout
    numbers = heads * size + (heads + 2 * kv_heads) * size + heads * 2
    return sum(lengths) * numbers * itemsize / 2**20


def copy_rate(device: str) -> float:
    """Bytes a second read and written by a copy of a large tensor."""
    source = torch.ones(COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source), device) * 1e3


def _choices(lengths: tuple[int, ...]) -> int:
    """Blocks selected by all events for one key/value head."""
    by_position = np.minimum(np.arange(max(lengths)) // BLOCK_SIZE, TOP_N)
    return _total(by_position, lengths)


def _far(lengths: tuple[int, ...]) -> int:
    """Keys at powers of two beyond the window that all events see."""
    longest = max(lengths)
    by_position = np.zeros(longest, dtype=np.int64)
    for distance in NearPattern(WINDOW).distances(longest):
        by_position[distance:] += distance >= WINDOW
    return _total(by_position, lengths)


def _total(by_position: np.ndarray, lengths: tuple[int, ...]) -> int:
    sums = np.cumsum(by_position)
    return int(sums[np.array(lengths) - 1].sum())
