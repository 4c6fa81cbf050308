"""States in pages where they are at home: long histories, many users, no wait, one graph."""

import copy

import pytest
import torch
from extending import make_attention

from blossomrec.attention import AttentionState, PagedStates
from blossomrec.attention.state import StepGraph
from whole_history import relative_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = (0, 1, 15, 16, 79, 333, 4_095, 16_384, 65_535)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def as_served(poisoned_buffers):
    """Matrix products refuse to be deterministic here unless the whole process is set up for it."""
    torch.use_deterministic_algorithms(False)


def make(dtype=torch.float32, compress="mlp", **sizes):
    layout = {"hidden_size": 128, "num_heads": 8, "num_kv_heads": 2} | sizes
    return make_attention(compress=compress, sinks=2, **layout).to("cuda", dtype)


def drawn(pages, length, seed):
    """A state of random keys and values."""
    generator = torch.Generator("cuda").manual_seed(seed)
    rows = (length, length, length // 16)
    tensors = [
        torch.randn(n, 2, pages.layout.size, device="cuda", generator=generator) for n in rows
    ]

    def write(step):
        pages.layers[0].write(*tensors, step)

    return pages.extend([AttentionState.empty(pages)], [length], write)[1][0]


def events(attention, count, seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    width = attention.query.weight.shape[1]
    return torch.randn(count, width, device="cuda", generator=generator).to(
        attention.query.weight.dtype
    )


def filled(attention, **room):
    pages = PagedStates(attention.layout, **room)
    return pages, [drawn(pages, length, length) for length in LENGTHS]


def plain(attention):
    """The same without kernels."""
    other = copy.deepcopy(attention)
    other.impl = "torch"
    return other


@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 256, "num_heads": 4}], ids=["d16", "d64"])
@pytest.mark.parametrize("compress", ["mlp", "mean"])
@pytest.mark.parametrize("fusion", ["gated", "union"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_parity(dtype, fusion, compress, sizes):
    attention = make(dtype, compress, fusion=fusion, **sizes)
    _, states = filled(attention)
    alone, expect = filled(attention)[1], plain(attention)
    for turn in range(20):
        # Some of them have several events at once.
        counts = (
            [1] * len(states) if turn % 4 else [turn % 7 + place for place in range(len(states))]
        )
        x = events(attention, sum(counts), turn)
        expected, alone = expect.extend_batch(x, counts, alone)
        output, states = attention.extend_batch(x, counts, states)
        # Blocks of equal importance within rounding may be exchanged.
        same = (output.selected == expected.selected).flatten(1).all(-1)
        assert same.float().mean() > 0.7
        assert relative_error(output.hidden[same], expected.hidden[same]) < TOLERANCE[dtype]
    for found, state in zip(states, alone, strict=True):
        assert (found.length, found.first) == (state.length, state.first)
        assert relative_error(found.keys, state.keys) < TOLERANCE[dtype]
        if len(state.block_keys):
            assert relative_error(found.block_keys, state.block_keys) < TOLERANCE[dtype]


@pytest.mark.parametrize("compress", ["mlp", "mean"])
def test_nothing_waits_for_the_device(compress):
    attention = make(compress=compress)
    pages, states = filled(attention, pages=20_000, users=20, blocks=5_000)
    x = events(attention, len(states), 0)

    def extend():
        step, after = pages.step(states)
        attention.extend_paged(x, pages.layers[0], step)
        return after

    states = extend()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(17):
            states = extend()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "compress, fusion", [("mlp", "gated"), ("mean", "gated"), ("mlp", "union")]
)
def test_a_graph_gives_what_a_call_gives(compress, fusion):
    attention = make(compress=compress, fusion=fusion)
    (pages, states), (_, alone) = (filled(attention) for _ in range(2))
    run = StepGraph(
        lambda x, step: attention.extend_paged(x, pages.layers[0], step).hidden, pages, 16
    )
    generations = set()
    for turn in range(40):
        some = slice(turn % 3, None)
        x = events(attention, len(states[some]), turn)
        expected, alone[some] = attention.extend_batch(x, [1] * len(x), alone[some])
        found, states[some] = run(x, states[some])
        assert relative_error(found, expected.hidden) < 1e-5
        generations.add(pages.generation)
    # The longest history has filled its columns: it was captured again.
    assert len(generations) > 1
