"""One more event of each user, over the length of the history that came before.

One layer, projections included: Blossom attention over a kept state (``torch``, and ``cpu`` on a
CPU), over states of all users in pages (``paged``, on a GPU as one CUDA graph), over the whole
history again (``recompute``, for one user), and dense attention over kept keys and values
(``dense-cache``). A call waits for its answer, as a request does. ``peak_mib`` is what the users
cost: the pages of the states that are kept, or the memory of running the whole history once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.bench_options import PUBLISHED, BenchOptions, is_blossom
from benchmarks.speed.instruments.memory import peak_mib
from benchmarks.speed.instruments.parity import Check, relative_error
from benchmarks.speed.instruments.timing import MOST, milliseconds
from benchmarks.speed.speed_lines import Line, result_line
from blossomrec.attention import AttentionState, BlossomAttention, BlossomSpec, PagedStates
from blossomrec.attention.state import Step, StepGraph
from blossomrec.models.full import FullAttention
from blossomrec.training.state import seeded

LENGTHS = {"cpu": (256, 4_096, 16_384, 65_536), "cuda": (256, 4_096, 16_384, 65_536)}
TOKENS = {"cpu": 1, "cuda": 1}
DTYPE = {"cpu": "float32", "cuda": "float32"}
WAYS = (
    ("torch", "mean"),
    ("torch", "mlp"),
    ("paged", "mean"),
    ("paged", "mlp"),
    ("cpu", "mean"),
    ("cpu", "mlp"),
    ("recompute", "mean"),
    ("recompute", "mlp"),
    ("dense-cache", "none"),
)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    """A way to attend from the next event, after how many, for how many users at a time."""

    impl: str
    compress: str
    length: int
    users: int


def cases(options: BenchOptions) -> list[Case]:
    """All that is to be measured, by rising length."""
    return [
        Case(impl, compress, length, users)
        for length in options.lengths
        for users in options.users
        for impl, compress in WAYS
        if options.wants(impl)
        and (users == 1 or impl != "recompute")
        and (impl != "cpu" or "cpu" in options.blossom)
    ]


def checks(options: BenchOptions) -> Iterator[Check]:
    """Events after a kept state, one at a time for two users, beside the whole history."""
    # What recomputes is what the others are compared with.
    kinds = ((c.impl, c.compress) for c in cases(options) if c.impl != "recompute")
    for impl, compress in dict.fromkeys(kinds):
        attention, width = layer(impl, compress, options), PUBLISHED.hidden_size
        x = torch.randn(400, width, device=options.device, dtype=options.dtype)
        if impl == "paged" and isinstance(attention, BlossomAttention):
            name, found = f"pages, {compress}", _paged(attention, x)
        else:
            name, found = f"kept state, {impl} {compress}", _extended(attention, x)
        error = relative_error(found, _whole(attention, x))
        yield Check(name, error, TOLERANCE[options.dtype])


def measure(case: Case, options: BenchOptions) -> Line:
    """One line of results."""
    with torch.inference_mode():
        run, states = next_event(case, options)
        run()  # what is loaded once is not what a call takes
        memory = sum(kept.nbytes for kept in states) / 2**20
        if not states:
            memory = peak_mib(run, options.device)
        forward_ms = milliseconds(run, options.device, waiting=True)
    return result_line(
        "incremental",
        case.impl,
        PUBLISHED,
        length=case.length,
        tokens=case.users,
        dtype=options.dtype,
        device=options.device,
        compress=case.compress,
        forward_ms=forward_ms,
        peak_mib=memory,
        users=case.users,
    )


def layer(impl: str, compress: str, options: BenchOptions) -> BlossomAttention | FullAttention:
    """One attention layer with seeded weights; ``compress`` "none" is dense attention."""
    sizes: dict[str, Any] = {
        "hidden_size": PUBLISHED.hidden_size,
        "num_heads": PUBLISHED.heads,
        "num_kv_heads": PUBLISHED.kv_heads,
    }
    with seeded(0):
        if compress == "none":
            made = FullAttention(**sizes)
        else:
            impl = impl if is_blossom(impl) else "auto"
            made = BlossomAttention(spec=BlossomSpec(compress=compress), impl=impl, **sizes)
    return made.to(options.device, options.dtype).eval()


def next_event(case: Case, options: BenchOptions) -> tuple[Callable[[], Any], list[AttentionState]]:
    """A function that attends from one more event of each user, and the states it keeps."""
    attention = layer(case.impl, case.compress, options)
    like = {"device": options.device, "dtype": options.dtype}
    if case.impl == "recompute":
        history = torch.randn(case.length + 1, PUBLISHED.hidden_size, **like)
        return lambda: _run(attention, history), []
    x = torch.randn(case.users, PUBLISHED.hidden_size, **like)
    # Room for what is timed as well, so that nothing grows meanwhile.
    blocks = (case.length + 2 * MOST) // attention.layout.block_size
    pages = PagedStates(
        attention.layout, pages=case.users * blocks, users=case.users, blocks=blocks
    )
    states = [kept_state(pages, case.length, user) for user in range(case.users)]
    if isinstance(attention, BlossomAttention) and case.impl == "paged":
        step = in_pages(attention, pages, case.users)

        def extend() -> None:
            states[:] = step(x.normal_(), states)[1]

    else:
        counts = [1] * case.users

        def extend() -> None:
            # Other input every time: equal keys would make equal scores.
            states[:] = attention.extend_batch(x.normal_(), counts, states)[1]

    return extend, states


def in_pages(attention: BlossomAttention, pages: PagedStates, users: int) -> StepGraph:
    """One more event of each of ``users`` users kept there."""

    def attend(x: Tensor, step: Step) -> Tensor:
        return attention.extend_paged(x, pages.layers[0], step).hidden

    return StepGraph(attend, pages, users)


def kept_state(pages: PagedStates, length: int, seed: int) -> AttentionState:
    """A state of ``length`` random keys and values, without the memory of computing them."""
    layout = pages.layout
    generator = torch.Generator(layout.device).manual_seed(seed)

    def draw(rows: int) -> Tensor:
        shape = (rows, layout.heads, layout.size)
        return torch.randn(shape, device=layout.device, generator=generator).to(layout.dtype)

    keys, values = draw(length), draw(length)
    blocks = draw(length // layout.block_size if layout.reach else 0)

    def write(step: Step) -> None:
        pages.layers[0].write(keys, values, blocks, step)

    return pages.extend([AttentionState.empty(pages)], [length], write)[1][0]


@torch.no_grad()
def _run(attention: BlossomAttention | FullAttention, x: Tensor) -> Tensor:
    """One whole history."""
    cu_seqlens = torch.tensor([0, len(x)], dtype=torch.int32, device=x.device)
    return attention(x, cu_seqlens, max_length=len(x)).hidden


def _whole(attention: BlossomAttention | FullAttention, x: Tensor) -> Tensor:
    """The last 100 events of the history, and of one that is shorter by its first 37."""
    return torch.stack((_run(attention, x)[-100:], _run(attention, x[37:])[-100:]), 1)


def _extended(attention: BlossomAttention | FullAttention, x: Tensor) -> Tensor:
    """The same, two users at a time, over kept states."""
    first, second = x[:-100], x[37:-100]
    counts = [len(first), len(second)]
    states = [attention.start(), attention.start()]
    _, states = attention.extend_batch(torch.cat((first, second)), counts, states)
    parts = []
    for event in x[-100:]:
        output, states = attention.extend_batch(torch.stack((event, event)), [1, 1], states)
        parts.append(output.hidden)
    return torch.stack(parts)


def _paged(attention: BlossomAttention, x: Tensor) -> Tensor:
    """The same, two users at a time, in pages."""
    pages = PagedStates(attention.layout)
    histories = (x[:-100], x[37:-100])
    states = [attention.extend(each, AttentionState.empty(pages))[1] for each in histories]
    step, parts = in_pages(attention, pages, len(states)), []
    for event in x[-100:]:
        hidden, states = step(torch.stack((event, event)), states)
        parts.append(hidden)
    return torch.stack(parts)
