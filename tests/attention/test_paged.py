"""Steps of many users over pages give what states kept one by one give, and whole histories."""

import random

import pytest
import torch
from extending import in_parts, make_attention, make_events, whole

from blossomrec.attention import PagedStates
from blossomrec.attention.state.paged import OutOfPagesError, StepGraph
from whole_history import relative_error

CROSSED = [15, 16, 17, 31, 32, 33, 79, 80, 81, 333]
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
    for layer in pool.layers:
        layer.pages[pool._free_pages] = torch.nan
        layer.block_keys[pool._free_pages] = torch.nan


class Both:
    """Users in a pool and the same users as states; every step compares the two."""

    def __init__(self, attention, **room):
        self.attention = attention
        self.pool = PagedStates([attention.start()], **room)
        self.states, self.seed = {}, 0

    def events(self, count):
        self.seed += 1
        return make_events(count, self.seed, 64).to(self.attention.key.weight.dtype)

    def add(self, length, keep=None):
        state = self.attention.start()
        if length:
            state = self.attention.extend(self.events(length), state)[1]
        if keep is not None:
            state = state.trim(keep)
        user = self.pool.add([state])
        self.states[user] = state
        poison(self.pool)
        return user

    def step(self, users, tolerance=1e-5):
        x = self.events(len(users))
        states = [self.states[user] for user in users]
        expected, states = self.attention.extend_batch(x, [1] * len(users), states)
        self.states |= dict(zip(users, states, strict=True))
        output = self.attention.extend_paged(x, self.pool.layers[0], self.pool.step(users))
        assert torch.equal(output.selected, expected.selected)
        assert relative_error(output.hidden, expected.hidden) < tolerance

    def drop(self, user):
        self.pool.drop(user)
        del self.states[user]
        poison(self.pool)

    def trim(self, user, keep):
        self.pool.trim(user, keep)
        self.states[user] = self.states[user].trim(keep)
        poison(self.pool)

    def check_states(self):
        for user, state in self.states.items():
            (read,) = self.pool.read(user)
            assert (read.length, read.first) == (state.length, state.first)
            for name in ("keys", "values", "block_keys"):
                torch.testing.assert_close(getattr(read, name), getattr(state, name))


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("compress", ["mlp", "mean"])
def test_lengths_that_cross_a_block(impl, compress, sinks):
    both = Both(make(impl, compress=compress, sinks=sinks))
    users = [both.add(length - 1) for length in (1, 2, *CROSSED)]
    for _ in range(3):
        both.step(users)
    both.check_states()


@pytest.mark.parametrize("compress", ["mlp", "mean"])
def test_equal_to_the_whole_history(impl, compress):
    attention, x = make(impl, compress=compress, sinks=2), make_events(175, size=64)
    pool, outputs = PagedStates([attention.start()]), []
    # Kernels are interpreted here, and slow.
    start = 0 if impl == "torch" else 157
    user = pool.add([attention.extend(x[:start], attention.start())[1]])
    for event in x[start:].split(1):
        outputs.append(attention.extend_paged(event, pool.layers[0], pool.step([user])))
    expected = whole(make("reference", compress=compress, sinks=2), x)
    assert torch.equal(torch.cat([each.selected for each in outputs]), expected.selected[start:])
    hidden = torch.cat([each.hidden for each in outputs])
    assert relative_error(hidden, expected.hidden[start:]) < 1e-5


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("compress, sinks", [("mlp", 0), ("mlp", 3), ("mean", 3)])
def test_users_come_and_go(impl, compress, sinks, seed):
    """Pages pass from user to user, histories are trimmed, the pool grows meanwhile."""
    choose = random.Random(seed)
    both = Both(make(impl, compress=compress, sinks=sinks, top_n=2))
    # Kernels are interpreted here, and slow.
    for _ in range(100 if impl == "torch" else 25):
        users = list(both.states)
        deed = choose.choice(["add", "drop", "trim", *["step"] * 5])
        if deed == "add" or not users:
            both.add(choose.choice([0, 1, *CROSSED]), choose.choice([None, None, 0, 20]))
        elif deed == "drop":
            both.drop(choose.choice(users))
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
    ],
    ids=str,
)
def test_other_layouts(impl, options):
    both = Both(make(impl, **options))
    users = [both.add(length) for length in (0, 14, 33, 79, 200)] + [both.add(150, 40)]
    for _ in range(3):
        both.step(users)
    both.check_states()


def test_half_precision(impl):
    both = Both(make(impl, sinks=2).half())
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
    pool = PagedStates([attention.start()])
    state = attention.extend(make_events(16 * 40 + 3, size=64), attention.start())[1]
    users = [pool.add([state]), pool.add([state.trim(16 * 35)])]
    output = attention.extend_paged(make_events(2, 1, 64), pool.layers[0], pool.step(users))
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
    from blossomrec.attention.state.paged import eager

    monkeypatch.setattr(eager, "TILE_BLOCKS", 50)
    both = Both(make())
    users = [both.add(length) for length in (3, 2_000, 3, 500, 3)]
    both.step(users)


def test_a_step_filled_up_with_nobody(impl):
    """As a graph takes it: what is nobody's changes nothing and is left out of the result."""
    attention = make(impl)
    both, padded = Both(attention), PagedStates([attention.start()])
    run = StepGraph(
        lambda x, step: attention.extend_paged(x, padded.layers[0], step).hidden, padded, 4
    )
    users = [both.add(length) for length in (15, 79, 0)]
    same = [padded.add([both.states[user]]) for user in users]
    assert users == same
    for some in ([0, 1, 2], [1], [2, 0]):
        rows = [users[place] for place in some]
        x = make_events(len(rows), 5, 64)
        step = both.pool.step(rows)
        expected = attention.extend_paged(x, both.pool.layers[0], step).hidden
        assert relative_error(run(x, rows), expected) < 1e-6
    for user in users:
        for name in ("keys", "values", "block_keys"):
            one, other = (getattr(pool.read(user)[0], name) for pool in (both.pool, padded))
            torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="5 users do not fit a step of 4"):
        padded.step([padded.add() for _ in range(5)], pad_to=4)


def test_whole_histories_fill_pages(impl):
    attention, lengths = make(impl), [0, 1, 15, 16, 17, 40]
    x = make_events(sum(lengths), size=64)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    pool = PagedStates([attention.start()], pages=12, users=3, blocks=9)
    pool.drop(pool.add(attention.extend(x[:80], attention.start())[1:]))
    poison(pool)
    prefill = pool.prefill(lengths)
    output = attention.prefill(x, bounds, pool.layers[0], prefill)
    with torch.no_grad():
        expected = attention(x, bounds)
    assert torch.equal(output.selected, expected.selected)
    assert relative_error(output.hidden, expected.hidden) < 1e-6
    for user, events in zip(prefill.users, x.split(lengths), strict=True):
        (read,), (_, state) = pool.read(user), attention.extend(events, attention.start())
        assert (read.length, read.first) == (state.length, 0)
        for name in ("keys", "values", "block_keys"):
            torch.testing.assert_close(getattr(read, name), getattr(state, name))


def test_a_user_that_comes_back_is_the_same():
    attention = make()
    state = in_parts(attention, make_events(100, size=64), [100])[1].trim(40)
    pool = PagedStates([attention.start()] * 2)
    other = in_parts(attention, make_events(100, 1, 64), [100])[1].trim(40)
    user = pool.add([state, other])
    for read, given in zip(pool.read(user), (state, other), strict=True):
        assert (read.length, read.first, read.layout) == (100, given.first, given.layout)
        for name in ("keys", "values", "block_keys"):
            assert torch.equal(getattr(read, name), getattr(given, name))
    assert (pool.length(user), pool.first(user)) == (100, 48)


def test_pages_return():
    attention = make()
    pool = PagedStates([attention.start()], pages=20, users=3, blocks=9)
    before, generation = pool.nbytes, pool.generation
    for length in (0, 1, 16, 17, 140):
        state = attention.extend(make_events(length, size=64), attention.start())[1]
        user = pool.add([state])
        assert pool.free_pages == 20 - -(-length // 16)
        pool.trim(user, 0)
        # The open block, and the one before that its block key will be made of.
        assert pool.free_pages == 20 - min(
            -(-length // 16), length // 16 % 2 + 2 - (length % 16 == 0)
        )
        pool.drop(user)
        assert pool.free_pages == 20
    assert (pool.nbytes, pool.generation) == (before, generation)


def test_the_budget_holds():
    attention = make()
    page = (2 * 16 + 1) * 2 * 16 * 4
    pool = PagedStates([attention.start()], max_bytes=12 * page)
    state = attention.extend(make_events(80, size=64), attention.start())[1]
    first, second = pool.add([state]), pool.add([state])
    assert pool.nbytes <= 12 * page
    length, free = pool.length(first), pool.free_pages
    with pytest.raises(OutOfPagesError, match=f"max_bytes is {12 * page}"):
        pool.add([state])
    with pytest.raises(OutOfPagesError, match=f"max_bytes is {12 * page}"):
        pool.prefill([10, 80])
    assert (pool.free_pages, pool.free_users) == (free, 0)
    for _ in range(16 * free):
        step = pool.step([first])
        attention.extend_paged(make_events(1, size=64), pool.layers[0], step)
    with pytest.raises(OutOfPagesError):
        pool.step([first, second])
    assert (pool.length(first), pool.length(second)) == (length + 16 * free, 80)
    pool.drop(second)
    pool.step([first])


def test_growing_keeps_what_is_there():
    both = Both(make())
    users = [both.add(0) for _ in range(7)]
    for _ in range(70):
        both.step(users)
    both.check_states()
    # Half as much again each time: a handful of copies.
    assert both.pool.generation < 25


def test_wrong_calls():
    attention = make()
    pool = PagedStates([attention.start()])
    user = pool.add()
    with pytest.raises(ValueError, match=f"user {user + 1} is not here"):
        pool.step([user, user + 1])
    with pytest.raises(ValueError, match="user 0 is not here"):
        pool.length(0)
    with pytest.raises(ValueError, match="user -1 is not here"):
        pool.drop(-1)
    with pytest.raises(ValueError, match="one is named twice"):
        pool.step([user, user])
    with pytest.raises(ValueError, match="2 states are given for 1 layers"):
        pool.add([attention.start()] * 2)
    with pytest.raises(ValueError, match=r"state 0 has .* is needed"):
        pool.add([make(block_size=8).start()])
    with pytest.raises(ValueError, match="2 layouts"):
        PagedStates([attention.start(), make(block_size=8).start()])
    pool.drop(user)
    with pytest.raises(ValueError, match=f"user {user} is not here"):
        pool.read(user)
    small = make_attention(impl="triton")
    pool = PagedStates([small.start()])
    if has_triton():
        with pytest.raises(ValueError, match="the head size is 8"):
            small.extend_paged(make_events(1), pool.layers[0], pool.step([pool.add()]))


def test_inference_mode_and_gradients_do_not_mix():
    attention = make()
    with torch.inference_mode():
        pool = PagedStates([attention.start()])
        user = pool.add()
        attention.extend_paged(make_events(1, size=64), pool.layers[0], pool.step([user]))
    output = attention.extend_paged(make_events(1, size=64), pool.layers[0], pool.step([user]))
    assert not output.hidden.requires_grad
