"""New events over kept states give what the whole history gives, at a cost that does not grow."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from extending import in_parts, make_attention, make_events, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from blossomrec.attention import AttentionState, PagedStates
from blossomrec.attention.state import eager
from implementations import CPU, CPU_MISSING
from whole_history import Recorder, relative_error

PARTS = [1, 15, 16, 17, 31, 32, 33, 79, 80, 81, 333]
FUSIONS = pytest.mark.parametrize("fusion", ["gated", "union"])
BOTH = pytest.mark.parametrize("impl", ["torch", CPU])
FEW = settings(max_examples=40, deadline=None, derandomize=True)


def check_against_definition(attention, x, parts, keeps=(), tolerance=1e-5):
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch)
        hidden, state, first = in_parts(attention, x, parts, keeps)
        recorder.replay(patch, first)
        assert relative_error(hidden, whole(attention, x).hidden) < tolerance
    return state, first


@BOTH
@FUSIONS
@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("compress", ["mlp", "mean"])
@pytest.mark.parametrize(
    "parts",
    [[each] for each in [*PARTS, 1000]] + [PARTS, PARTS[::-1], [1] * 333, [333, *[1] * 20, 80]],
    ids=lambda parts: "+".join(map(str, parts[:12])),
)
def test_equal_to_the_whole_history(parts, compress, sinks, fusion, impl):
    attention = make_attention(compress=compress, sinks=sinks, fusion=fusion, impl=impl)
    x = make_events(sum(parts))
    check_against_definition(attention, x, parts)


@FUSIONS
@pytest.mark.parametrize("impl", ["reference", "torch", CPU])
def test_equal_to_forward(impl, fusion):
    attention = make_attention(impl=impl, sinks=2, fusion=fusion)
    x = make_events(700)
    output, _ = attention.extend(x[:400], attention.start())
    output, _ = attention.extend(x[400:], attention.extend(x[:400], attention.start())[1])
    expected = whole(attention, x)
    # Blocks of equal importance within rounding may be exchanged.
    same = (output.selected == expected.selected[400:]).flatten(1).all(-1)
    assert same.float().mean() > 0.99
    assert relative_error(output.hidden[same], expected.hidden[400:][same]) < 1e-5
    torch.testing.assert_close(output.gates, expected.gates[400:])


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 2, "num_kv_heads": 2},
        {"num_heads": 8, "num_kv_heads": 2},
        {"num_heads": 1, "num_kv_heads": 1},
        {"hidden_size": 128, "num_heads": 8, "rotary_share": 1.0},
        {"hidden_size": 64, "num_heads": 2, "num_kv_heads": 1, "rotary_share": 0.3},
        {"hidden_size": 36, "num_heads": 6, "num_kv_heads": 3},
        {"hidden_size": 20, "num_heads": 2, "num_kv_heads": 1, "paths": "long"},
        {"hidden_size": 42, "num_heads": 3, "num_kv_heads": 3, "paths": "short"},
        {"compress_window": 16},
        {"compress_window": 48},
        {"gate": "convex"},
        {"fusion": "union", "num_heads": 2, "num_kv_heads": 2, "window": 19},
        {"fusion": "union", "block_size": 4, "compress_window": 20, "top_n": 2, "window": 1},
        {"fusion": "union", "block_size": 64, "top_n": 1, "compress_window": 128, "sinks": 100},
        {"block_size": 4, "compress_window": 20, "top_n": 2, "window": 1},
        {"block_size": 64, "top_n": 1, "compress_window": 128, "sinks": 100},
    ],
    ids=str,
)
def test_other_layouts(options, impl):
    attention = make_attention(impl=impl, **options)
    x = make_events(400, size=attention.query.in_features)
    check_against_definition(attention, x, [1, 70, 1, 1, 200, 127], [None, 40])


@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_a_share_and_another_power_law(fusion):
    form = {"block_size": 4, "compress_window": 8, "top_n": 6, "share": 0.05, "power_base": 3.0}
    attention = make_attention(impl="torch", fusion=fusion, **form)
    x = make_events(400, size=attention.query.in_features)
    found, _, _ = in_parts(attention, x, [1, 70, 1, 1, 200, 127])
    expected = whole(attention, x)
    torch.testing.assert_close(found, expected.hidden, rtol=1e-4, atol=1e-5)
    # Some events take as many as they may, others fewer.
    taken = (expected.selected[100:] >= 0).sum(-1)
    assert 1 <= taken.min() < taken.max() <= 6


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_other_types(dtype, tolerance):
    attention, x = make_attention().to(dtype), make_events(200).to(dtype)
    state, _ = check_against_definition(attention, x, [150, 1, 49], tolerance=tolerance)
    assert state.keys.dtype == dtype


@BOTH
@FEW
@given(
    parts=st.lists(st.integers(1, 60), min_size=1, max_size=10),
    keeps=st.lists(st.none() | st.integers(0, 200), max_size=10),
    compress=st.sampled_from(["mlp", "mean"]),
    block_size=st.sampled_from([4, 8, 16]),
    blocks=st.sampled_from([1, 2, 4]),
    sinks=st.sampled_from([0, 3]),
    fusion=st.sampled_from(["gated", "union"]),
    seed=st.integers(0, 1000),
)
def test_random_splits_and_trims(
    impl, parts, keeps, compress, block_size, blocks, sinks, fusion, seed
):
    attention = make_attention(
        impl=impl,
        compress=compress,
        block_size=block_size,
        compress_window=blocks * block_size,
        sinks=sinks,
        fusion=fusion,
        top_n=2,
    )
    state, first = check_against_definition(attention, make_events(sum(parts), seed), parts, keeps)
    assert state.length == sum(parts)
    assert (first % block_size == 0).all()


@FUSIONS
@pytest.mark.parametrize(
    "impl, tile",
    [
        ("torch", 1),
        ("torch", 7),
        ("torch", 128),
        pytest.param(*CPU.values, 0, marks=CPU.marks),
    ],
)
def test_many_users_at_once(impl, tile, fusion, monkeypatch):
    monkeypatch.setitem(eager.TILE_ROWS, "cpu", tile)
    attention = make_attention(sinks=3, fusion=fusion, impl=impl)
    lengths, counts = [0, 333, 15, 80, 200], [20, 1, 1, 0, 33]
    states = [
        in_parts(attention, make_events(n, n), [n] if n else [])[1] if n else attention.start()
        for n in lengths
    ]
    states[4] = states[4].trim(50)
    x = make_events(sum(counts), 99)
    output, extended = attention.extend_batch(x, counts, states)
    rows = x.split(counts)
    alone = [attention.extend(new, state) for new, state in zip(rows, states, strict=True)]
    assert relative_error(output.hidden, torch.cat([one.hidden for one, _ in alone])) < 1e-6
    assert torch.equal(output.selected, torch.cat([one.selected for one, _ in alone]))
    for state, (_, other) in zip(extended, alone, strict=True):
        assert (state.length, state.first) == (other.length, other.first)
        torch.testing.assert_close(state.keys, other.keys)
        torch.testing.assert_close(state.block_keys, other.block_keys)


def keep_random(pages, length, kinds, then):
    """A user of random keys and values, with block keys of so many kinds; ``then`` is done midway.

    Midway another user takes pages, so that those of this one do not all follow each other.
    """
    layout, seed = pages.layout, torch.Generator().manual_seed(length)
    keys, values = torch.randn(2, length, layout.heads, layout.size, generator=seed).unbind()
    known = torch.randn(kinds, layout.heads, layout.size, generator=seed)
    of_blocks = known[torch.randint(kinds, (length // layout.block_size,), generator=seed)]
    half = length // layout.block_size // 2
    states = [AttentionState.empty(pages)]
    for blocks in (slice(half), slice(half, None)):
        events = slice(*(x and x * layout.block_size for x in (blocks.start, blocks.stop)))
        rows = keys[events], values[events], of_blocks[blocks]
        write = partial(pages.layers[0].write, *rows)
        states = pages.extend(states, [len(rows[0])], write)[1]
        then()
    return states[0]


@pytest.mark.parametrize("impl", [CPU])
@pytest.mark.parametrize("top_n", [4, 20])
@pytest.mark.parametrize("kinds", [50, 100_000])
@pytest.mark.parametrize("length", [16 * 1024, 16 * 1031, 16 * 2300 + 5])
def test_the_best_of_many_blocks(length, kinds, top_n, impl):
    outputs = []
    for each in ("torch", impl):
        attention = make_attention(impl=each, fusion="union", top_n=top_n)
        pages, others = PagedStates(attention.layout), []

        def fork(attention=attention, pages=pages, others=others):
            others.append(attention.extend(make_events(40), AttentionState.empty(pages)))

        state = keep_random(pages, length, kinds, fork)
        outputs.append(attention.extend(make_events(9), state)[0])
    # Among equal blocks, of which there are many of few kinds, the first ones are taken.
    assert torch.equal(outputs[0].selected, outputs[1].selected)
    assert relative_error(outputs[1].hidden, outputs[0].hidden) < 1e-5


def change_in_place(attention):
    with torch.no_grad():
        attention.query.weight.add_(0.1)


def change_data(attention):
    attention.key.weight.data = attention.key.weight.data + 0.1


def change_parameter(attention):
    attention.value.weight = torch.nn.Parameter(attention.value.weight + 0.1)


def change_bias(attention):
    attention.gate.bias.data = attention.gate.bias.data + 0.5


def change_module(attention):
    attention.output = torch.nn.Linear(32, 32, bias=False)


def change_compression(attention):
    attention.compress = copy.deepcopy(attention.compress)
    with torch.no_grad():
        attention.compress.inner.weight.neg_()


def change_definition(attention):
    attention.spec = replace(attention.spec, top_n=2)


def change_type(attention):
    attention.double().float()


def transpose(attention):
    attention.query.weight.data = attention.query.weight.data.t().contiguous().t()


def turn(attention):
    attention.query.weight.data = attention.query.weight.data.t()


def load(attention):
    other = {name: x + 0.1 for name, x in attention.state_dict().items()}
    attention.load_state_dict(other, assign=True)


CHANGES = [change_in_place, change_data, change_parameter, change_bias, change_module]
CHANGES += [change_compression, change_definition, change_type, transpose, turn, load]


@BOTH
@pytest.mark.parametrize("gate", ["independent", "convex"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_prepared_follows_the_layer(change, gate, impl):
    attention, x = make_attention(impl=impl, gate=gate), make_events(130)
    _, state = attention.extend(x[:100], attention.start())
    old, _ = attention.extend(x[100:], state)
    change(attention)
    # Never used, it has nothing prepared.
    fresh = copy.deepcopy(attention)
    assert fresh._prepared is None
    found, expected = (each.extend(x[100:], state)[0] for each in (attention, fresh))
    assert torch.equal(found.selected, expected.selected)
    torch.testing.assert_close(found.hidden, expected.hidden, rtol=0, atol=0)
    torch.testing.assert_close(found.gates, expected.gates, rtol=0, atol=0)
    assert torch.equal(found.hidden, old.hidden) == (change in (change_type, transpose))


@BOTH
def test_what_is_prepared_is_kept(impl):
    attention, x = make_attention(impl=impl), make_events(20)
    _, state = attention.extend(x, attention.start())
    prepared = attention._prepared
    assert prepared is not None
    attention.extend(x, state)
    assert attention._prepared is prepared
    with torch.autocast("cpu", torch.bfloat16):
        assert not prepared.fits(attention, x)


@BOTH
def test_no_users_and_no_events(impl):
    attention = make_attention(impl=impl)
    output, states = attention.extend_batch(make_events(0), [], [])
    assert output.hidden.shape == (0, 32)
    assert states == []
    output, state = attention.extend(make_events(0), attention.start())
    assert output.selected.shape == (0, 2, 4)
    assert state.length == 0


@BOTH
def test_equal_scores_choose_the_lower_block(impl):
    attention, x = make_attention(compress="mean", impl=impl), make_events(180)
    with torch.no_grad():
        attention.key.weight.zero_()
    output, state = attention.extend(x[:160], attention.start())
    one, _ = attention.extend(x[160:161], state)
    for selected in (output.selected[-1], one.selected[0]):
        assert (selected == torch.arange(4)).all()


def test_everything_may_leave_where_no_window_is_open():
    attention = make_attention(compress="mean")
    check_against_definition(attention, make_events(200), [96, 1, 31, 72], [0, 0])


class Touched(TorchDispatchMode):
    """Counts elements of what operations give, views aside."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        known = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((arguments, options))
            if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            is_tensor = isinstance(leaf, torch.Tensor)
            if is_tensor and leaf.untyped_storage().data_ptr() not in known:
                self.elements += leaf.numel()
        return result


def touched(length, new=16):
    """Elements touched for an event, one in 16 of which completes a block; buffers have room."""
    attention = make_attention(sinks=2, impl="torch")
    _, state = attention.extend(make_events(length), attention.start())
    _, state = attention.extend(make_events(16), state)
    x = make_events(new)
    with Touched() as seen:
        for row in x.split(1):
            _, state = attention.extend(row, state)
    return seen.elements / new


def test_the_cost_of_an_event_grows_only_by_the_block_scores():
    short, long = touched(4_096), touched(65_536)
    scores = 2 * (65_536 - 4_096) // 16
    # Four more distances: their places, keys, values and scores of 2 groups with 2 heads each.
    distances = 4 * 2 * (2 * 8 + 2 * 8 * 2 + 20)
    assert long - short <= scores + 2 * distances
    assert short < 40_000


def test_a_block_key_is_made_once():
    attention, made = make_attention(), []
    pool = attention.compress.pool
    attention.compress.pool = lambda windows: made.append(len(windows)) or pool(windows)
    in_parts(attention, make_events(200), [33, *[1] * 67, 100], [None, 40])
    assert sum(made) == 200 // 16
    assert made == [2, 1, 1, 1, 1, 6]


@BOTH
def test_inference_mode_and_gradients_do_not_mix(impl):
    attention, x = make_attention(impl=impl), make_events(60)
    with torch.inference_mode():
        _, state = attention.extend(x[:50], attention.start())
        _, state = attention.extend(x[50:51], state)
    output, state = attention.extend(x[51:], state)
    assert not output.hidden.requires_grad
    assert not state.keys.requires_grad
    assert state.length == 60


@pytest.mark.skipif(bool(CPU_MISSING), reason=CPU_MISSING)
def test_the_operator_reads_no_row_of_another_state():
    """Pages of nobody and of others, and room for events that have not come yet, hold anything."""
    attention, x = make_attention(impl="cpu", sinks=2), make_events(300)
    _, other = attention.extend(x[:200], attention.start())
    _, state = attention.extend(x[:200], attention.start())
    _, state = attention.extend(x[200:201], state)
    expected = [attention.extend(x[201:202], state)[0].hidden]
    own = state.states.pages_of(state.row, state.length)
    layer = state.states.layers[0]
    others = torch.ones(len(layer.pages), dtype=torch.bool)
    others[own] = False
    layer.pages[others] = layer.block_keys[others] = torch.nan
    layer.pages[own[-1], :, state.length % 16 :] = layer.block_keys[own[-1]] = torch.nan
    expected.append(attention.extend(x[201:202], state)[0].hidden)
    assert other.keys.isnan().all()
    assert torch.equal(*expected)


def test_autocast_goes_through_pytorch():
    attention, x = make_attention(), make_events(60)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = attention.extend(x, attention.start())
    assert relative_error(output.hidden, whole(attention, x).hidden) < 5e-2


def test_a_type_that_the_operator_does_not_take_is_named():
    attention = make_attention(impl="cpu").double()
    with pytest.raises(ValueError, match=r"type is torch\.float64"):
        attention.extend(make_events(5).double(), attention.start())
