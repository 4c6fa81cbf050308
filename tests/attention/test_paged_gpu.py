"""States in pages where they are at home: long histories, many users, no wait, one graph."""

import pytest
import torch
from extending import make_attention

from blossomrec.attention import AttentionState, PagedStates
from blossomrec.attention.state.paged import StepGraph
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


def drawn(attention, length, seed):
    """A state of random keys and values."""
    empty, generator = attention.start(), torch.Generator("cuda").manual_seed(seed)
    rows = (length, length, length // 16)
    tensors = [
        torch.randn(n, 2, attention.heads.size, device="cuda", generator=generator) for n in rows
    ]
    like = empty.events.buffer.dtype
    names = ("keys", "values", "block_keys")
    given = {name: tensor.to(like) for name, tensor in zip(names, tensors, strict=True)}
    return AttentionState.from_dict(empty.to_dict() | given)


def events(attention, count, seed):
    generator = torch.Generator("cuda").manual_seed(seed)
    width = attention.query.weight.shape[1]
    return torch.randn(count, width, device="cuda", generator=generator).to(
        attention.query.weight.dtype
    )


def filled(attention, **room):
    pool = PagedStates([attention.start()], **room)
    states = [drawn(attention, length, length) for length in LENGTHS]
    return pool, states, [pool.add([state]) for state in states]


@pytest.mark.parametrize("sizes", [{}, {"hidden_size": 256, "num_heads": 4}], ids=["d16", "d64"])
@pytest.mark.parametrize("compress", ["mlp", "mean"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_parity(dtype, compress, sizes):
    attention = make(dtype, compress, **sizes)
    pool, states, users = filled(attention)
    for number in range(20):
        x = events(attention, len(users), number)
        expected, states = attention.extend_batch(x, [1] * len(users), states)
        output = attention.extend_paged(x, pool.layers[0], pool.step(users))
        # Blocks of equal importance within rounding may be exchanged.
        same = (output.selected == expected.selected).flatten(1).all(-1)
        assert same.float().mean() > 0.7
        assert relative_error(output.hidden[same], expected.hidden[same]) < TOLERANCE[dtype]
    for user, state in zip(users, states, strict=True):
        (read,) = pool.read(user)
        assert relative_error(read.keys, state.keys) < TOLERANCE[dtype]
        if len(state.block_keys):
            assert relative_error(read.block_keys, state.block_keys) < TOLERANCE[dtype]


@pytest.mark.parametrize("compress", ["mlp", "mean"])
def test_nothing_waits_for_the_device(compress):
    attention = make(compress=compress)
    pool, _, users = filled(attention, pages=20_000, blocks=5_000)
    x = events(attention, len(users), 0)
    attention.extend_paged(x, pool.layers[0], pool.step(users))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(17):
            attention.extend_paged(x, pool.layers[0], pool.step(users))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compress", ["mlp", "mean"])
def test_a_graph_gives_what_a_call_gives(compress):
    attention = make(compress=compress)
    pools = [filled(attention)[0] for _ in range(2)]
    users = list(range(1, len(LENGTHS) + 1))
    run = StepGraph(
        lambda x, step: attention.extend_paged(x, pools[1].layers[0], step).hidden, pools[1], 16
    )
    generations = set()
    for number in range(40):
        some = users[number % 3 :]
        x = events(attention, len(some), number)
        expected = attention.extend_paged(x, pools[0].layers[0], pools[0].step(some)).hidden
        assert relative_error(run(x, some), expected) < 1e-5
        generations.add(pools[1].generation)
    # The longest history has filled its columns: it was captured again.
    assert len(generations) > 1
