"""Steps of many users over pages give what states kept one by one give, and whole histories."""

import copy
import ctypes
import mmap
import os
import random
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from extending import in_parts, make_attention, make_events, whole

from blossomrec.attention import AttentionState, PagedStates
from blossomrec.attention.state import OutOfPagesError, StepGraph, eager, state_of
from whole_history import relative_error

CROSSED = [15, 16, 17, 31, 32, 33, 79, 80, 81, 333]
FUSIONS = pytest.mark.parametrize("fusion", ["gated", "union"])
SIZES = {"hidden_size": 64, "num_heads": 4, "num_kv_heads": 2}


def has_triton():
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture(
    params=["torch", pytest.param("triton", marks=pytest.mark.skipif(not has_triton(), reason=""))]
)
def impl(request):
    return request.param


def make(impl="torch", **options):
    return make_attention(**SIZES | options, impl=impl)


def poison(pool):
    """NaN in every page that is nobody's."""
    assert pool.free_pages == (pool._holders[1:] == 0).sum()
    for layer in pool.layers:
        layer.pages[1:][pool._holders[1:] == 0] = torch.nan
        layer.block_keys[1:][pool._holders[1:] == 0] = torch.nan


class Both:
    """Users in pages, and each of them in pages of its own; every step compares the two."""

    def __init__(self, attention, **room):
        self.attention, self.plain = attention, copy.deepcopy(attention)
        # Kernels are interpreted here, and slow.
        self.plain.impl = "torch"
        self.pool = PagedStates(attention.layout, **room)
        self.users, self.alone, self.seed = {}, {}, 0

    def events(self, count):
        self.seed += 1
        return make_events(count, self.seed, 64).to(self.attention.key.weight.dtype)

    def add(self, length, keep=None):
        user, x = len(self.users) and max(self.users) + 1, self.events(length)
        states = [AttentionState.empty(pool) for pool in (self.pool, self.own())]
        states = [self.plain.extend(x, state)[1] for state in states]
        if keep is not None:
            states = [state.trim(keep) for state in states]
        self.users[user], self.alone[user] = states
        poison(self.pool)
        return user

    def own(self):
        return PagedStates(self.attention.layout)

    def step(self, users, tolerance=1e-5, counts=None):
        counts = [1] * len(users) if counts is None else counts
        x, states = self.events(sum(counts)), [self.users[user] for user in users]
        output, states = self.attention.extend_batch(x, counts, states)
        self.users |= dict(zip(users, states, strict=True))
        expected = []
        for user, new in zip(users, x.split(counts), strict=True):
            alone, self.alone[user] = self.plain.extend(new, self.alone[user])
            expected.append(alone)
        assert torch.equal(output.selected, torch.cat([each.selected for each in expected]))
        hidden = torch.cat([each.hidden for each in expected])
        assert relative_error(output.hidden, hidden) < tolerance

    def drop(self, user):
        del self.users[user], self.alone[user]
        poison(self.pool)

    def trim(self, user, keep):
        for states in (self.users, self.alone):
            states[user] = states[user].trim(keep)
        poison(self.pool)

    def fork(self, user):
        """Another user, who has had the same events up to now; their ways part from here."""
        other = max(self.users) + 1
        self.users[other], self.alone[other] = self.users[user], self.alone[user]

    def check_states(self):
        for user, state in self.users.items():
            same(state, self.alone[user])


def same(state, other):
    assert (state.length, state.first) == (other.length, other.first)
    for name in ("keys", "values", "block_keys"):
        torch.testing.assert_close(getattr(state, name), getattr(other, name))


@FUSIONS
@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("compress", ["mlp", "mean"])
def test_lengths_that_cross_a_block(impl, compress, sinks, fusion):
    both = Both(make(impl, compress=compress, sinks=sinks, fusion=fusion))
    users = [both.add(length - 1) for length in (1, 2, *CROSSED)]
    for _ in range(3):
        both.step(users)
    both.check_states()


@FUSIONS
@pytest.mark.parametrize("compress", ["mlp", "mean"])
def test_equal_to_the_whole_history(impl, compress, fusion):
    options = {"compress": compress, "sinks": 2, "fusion": fusion}
    attention, x = make(impl, **options), make_events(175, size=64)
    # Kernels are interpreted here, and slow.
    start = 0 if impl == "torch" else 157
    state, outputs = Both(attention).plain.extend(x[:start], attention.start())[1], []
    for event in x[start:].split(1):
        output, state = attention.extend(event, state)
        outputs.append(output)
    expected = whole(make("reference", **options), x)
    assert torch.equal(torch.cat([each.selected for each in outputs]), expected.selected[start:])
    hidden = torch.cat([each.hidden for each in outputs])
    assert relative_error(hidden, expected.hidden[start:]) < 1e-5


@FUSIONS
@pytest.mark.parametrize("compress", ["mlp", "mean"])
def test_several_events_of_several_users(impl, compress, fusion):
    both = Both(make(impl, compress=compress, sinks=3, fusion=fusion))
    users = [both.add(length) for length in (0, 30, 79, 150)]
    both.trim(3, 40)
    both.step(users, counts=[3, 20, 0, 1])
    both.step(users[1:3], counts=[1, 17])
    both.check_states()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("compress, sinks", [("mlp", 0), ("mlp", 3), ("mean", 3)])
def test_users_come_and_go(impl, compress, sinks, seed):
    """Pages pass from user to user, histories are trimmed, the pool grows meanwhile."""
    choose = random.Random(seed)
    both = Both(make(impl, compress=compress, sinks=sinks, top_n=2))
    # Kernels are interpreted here, and slow.
    for _ in range(100 if impl == "torch" else 25):
        users = list(both.users)
        deed = choose.choice(["add", "drop", "trim", "fork", *["step"] * 5])
        if deed == "add" or not users:
            both.add(choose.choice([0, 1, *CROSSED]), choose.choice([None, None, 0, 20]))
        elif deed == "drop":
            both.drop(choose.choice(users))
        elif deed == "fork":
            both.fork(choose.choice(users))
        elif deed == "trim":
            both.trim(choose.choice(users), choose.choice([0, 5, 16, 40]))
        else:
            both.step(choose.sample(users, choose.randint(1, len(users))))
    both.check_states()


@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 2, "num_kv_heads": 2},
        {"num_heads": 4, "num_kv_heads": 1, "top_n": 9},
        {"num_heads": 1, "num_kv_heads": 1, "window": 1, "top_n": 1},
        {"block_size": 32, "compress_window": 64, "window": 40, "sinks": 40},
        {"compress_window": 16, "top_n": 3, "window": 19},
        {"paths": "long"},
        {"paths": "short"},
        {"gate": "convex"},
        {"fusion": "union", "num_heads": 1, "num_kv_heads": 1, "window": 1, "top_n": 1},
        {"fusion": "union", "block_size": 32, "compress_window": 64, "window": 40, "sinks": 40},
    ],
    ids=str,
)
def test_other_layouts(impl, options):
    both = Both(make(impl, **options))
    users = [both.add(length) for length in (0, 14, 33, 79, 200)] + [both.add(150, 40)]
    for _ in range(3):
        both.step(users)
    both.check_states()


@FUSIONS
def test_half_precision(impl, fusion):
    both = Both(make(impl, sinks=2, fusion=fusion).half())
    users = [both.add(length) for length in (0, 15, 79, 150)]
    for _ in range(3):
        both.step(users, tolerance=5e-3)


@pytest.mark.parametrize("spans", [1, 3])
def test_equal_scores_choose_the_lower_block(impl, spans, monkeypatch):
    if impl == "triton":
        from blossomrec.attention.backends.gpu import step

        monkeypatch.setattr(step, "SPAN", 16 if spans > 1 else 256)
    attention = make(impl, compress="mean")
    with torch.no_grad():
        attention.key.weight.zero_()
    state = Both(attention).plain.extend(make_events(16 * 40 + 3, size=64), attention.start())[1]
    states = [state, state.trim(16 * 35)]
    output, _ = attention.extend_batch(make_events(2, 1, 64), [1, 1], states)
    assert (output.selected[0] == torch.arange(4)).all()
    assert (output.selected[1] == torch.arange(5, 9)).all()


def test_spans_are_merged(monkeypatch):
    pytest.importorskip("triton")
    from blossomrec.attention.backends.gpu import step

    monkeypatch.setattr(step, "SPAN", 4)
    both = Both(make("triton", compress="mean"))
    users = [both.add(length) for length in (700, 3, 63, 64, 129)]
    for _ in range(2):
        both.step(users)


def test_a_long_history_beside_short_ones(monkeypatch):
    monkeypatch.setattr(eager, "TILE_BLOCKS", 50)
    both = Both(make())
    users = [both.add(length) for length in (3, 2_000, 3, 500, 3)]
    both.step(users)


def test_a_step_filled_up_with_nobody(impl):
    """As a graph takes it: what is nobody's changes nothing and is left out of the result."""
    both = Both(make(impl))
    run = StepGraph(
        lambda x, step: both.attention.extend_paged(x, both.pool.layers[0], step).hidden,
        both.pool,
        4,
    )
    users = [both.add(length) for length in (15, 79, 0)]
    for some in ([0, 1, 2], [1], [2, 0]):
        x, users = make_events(len(some), 5, 64), [both.users[user] for user in some]
        hidden, states = run(x, users)
        both.users |= dict(zip(some, states, strict=True))
        alone = [both.alone[user] for user in some]
        found = [both.plain.extend(row, one) for row, one in zip(x.split(1), alone, strict=True)]
        both.alone |= {user: state for user, (_, state) in zip(some, found, strict=True)}
        assert relative_error(hidden, torch.cat([each.hidden for each, _ in found])) < 1e-5
    both.check_states()
    with pytest.raises(ValueError, match="5 users do not fit a step of 4"):
        both.pool.step([AttentionState.empty(both.pool) for _ in range(5)], pad_to=4)


def test_whole_histories_fill_pages(impl):
    attention, lengths = make(impl), [1, 15, 16, 17, 40]
    x = make_events(sum(lengths), size=64)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    both = Both(attention, pages=12, users=5, blocks=9)
    both.add(80)
    both.drop(0)
    step, states = both.pool.step([AttentionState.empty(both.pool) for _ in lengths], lengths)
    output = attention.prefill(x, bounds, both.pool.layers[0], step)
    with torch.no_grad():
        expected = attention(x, bounds)
    assert torch.equal(output.selected, expected.selected)
    assert relative_error(output.hidden, expected.hidden) < 1e-6
    for state, events in zip(states, x.split(lengths), strict=True):
        same(state, both.plain.extend(events, attention.start())[1])


def test_layers_keep_what_is_theirs():
    attention = make()
    layers = [in_parts(attention, make_events(100, seed, 64), [100])[1].trim(40) for seed in (0, 1)]
    state = state_of([each.to_dict() for each in layers])
    assert len(state.states.layers) == 2
    for number, given in enumerate(layers):
        read = replace(state, number=number)
        assert (read.length, read.first, read.layout) == (100, 48, given.layout)
        for name in ("keys", "values", "block_keys"):
            assert torch.equal(getattr(read, name), getattr(given, name))


def test_pages_return():
    attention = make()
    pool = PagedStates(attention.layout, pages=20, users=3, blocks=9)
    before, generation = pool.nbytes, pool.generation
    for length in (0, 1, 16, 17, 140):
        state = AttentionState.empty(pool)
        state = attention.extend(make_events(length, size=64), state)[1]
        assert pool.free_pages == 20 - -(-length // 16)
        state = state.trim(0)
        # The open block, and the one before that its block key will be made of.
        assert pool.free_pages == 20 - min(
            -(-length // 16), length // 16 % 2 + 2 - (length % 16 == 0)
        )
        del state
        assert (pool.free_pages, pool.free_users) == (20, 3)
    assert (pool.nbytes, pool.generation) == (before, generation)


def test_the_budget_holds():
    attention = make()
    page = (2 * 16 + 1) * 2 * 16 * 4
    pool = PagedStates(attention.layout, max_bytes=12 * page)
    x = make_events(80, size=64)
    first, second = (attention.extend(x, AttentionState.empty(pool))[1] for _ in range(2))
    assert pool.nbytes <= 12 * page
    free = pool.free_pages
    with pytest.raises(OutOfPagesError, match=f"max_bytes is {12 * page}"):
        attention.extend(x, first)
    with pytest.raises(OutOfPagesError, match=f"max_bytes is {12 * page}"):
        attention.extend_batch(x, [40, 40], [first, first])
    assert (pool.free_pages, first.row.length) == (free, 80)
    for _ in range(16 * free):
        first = attention.extend(make_events(1, size=64), first)[1]
    with pytest.raises(OutOfPagesError):
        pool.step([first, second])
    assert (first.length, second.length) == (80 + 16 * free, 80)
    del second
    attention.extend(make_events(1, size=64), first)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_room_takes_no_memory_before_it_is_used():
    """Not even where the C library holds as much that was given back to the system."""

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    chunks = [ctypes.c_void_p(library.malloc(100_000)) for _ in range(2_001)]
    for chunk in chunks:
        ctypes.memset(chunk, 1, 100_000)
    for chunk in chunks[:-1]:
        library.free(chunk)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    before = resident()
    pool = PagedStates(make().layout, pages=30_000, users=4, blocks=4)
    assert pool.nbytes > 100 << 20
    assert resident() - before < 32 << 20
    library.free(chunks[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_with_more_room_than_memory_forks():
    memory = os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    layout = make().layout
    pages = memory * 6 // 10 // PagedStates(layout).page_bytes
    pools = [PagedStates(layout, pages=pages, users=1, blocks=1) for _ in range(3)]
    assert sum(pool.nbytes for pool in pools) > memory
    if (child := os.fork()) == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_growing_keeps_what_is_there():
    both = Both(make())
    users = [both.add(0) for _ in range(7)]
    for _ in range(70):
        both.step(users)
    both.check_states()
    # Half as much again each time: a handful of copies.
    assert both.pool.generation < 25


def test_room_does_not_grow_while_somebody_writes():
    """An extension that needs more pages waits for those that write to the old ones."""
    attention, order = make(), []
    pool = PagedStates(attention.layout, pages=4, users=4, blocks=4)
    started, go_on = threading.Event(), threading.Event()

    def slow(step):
        started.set()
        assert go_on.wait(60)
        order.append((pool.generation, "written"))

    def extend(count, write):
        pool.extend([AttentionState.empty(pool)], [count], write)

    before = pool.generation
    threads = [threading.Thread(target=extend, args=(16, slow))]
    threads[0].start()
    assert started.wait(60)
    # For this one there is room.
    extend(16, lambda step: order.append((pool.generation, "small")))
    grow = (200, lambda step: order.append((pool.generation, "large")))
    threads.append(threading.Thread(target=extend, args=grow))
    threads[1].start()
    threads[1].join(0.2)
    go_on.set()
    for each in threads:
        each.join(60)
    assert order[:2] == [(before, "small"), (before, "written")]
    assert order[2][0] > before


def test_a_kernel_that_does_not_take_the_heads():
    pytest.importorskip("triton")
    small = make_attention(impl="triton")
    with pytest.raises(ValueError, match="the head size is 8"):
        small.extend(make_events(1), small.start())


def test_inference_mode_and_gradients_do_not_mix():
    attention = make()
    with torch.inference_mode():
        state = AttentionState.empty(PagedStates(attention.layout))
        state = attention.extend(make_events(1, size=64), state)[1]
    output, _ = attention.extend(make_events(1, size=64), state)
    assert not output.hidden.requires_grad
