"""Kept states as values: trimming, extending twice, threads, tensors and back, memory."""

import threading
import weakref

import pytest
import torch
from extending import in_parts, make_attention, make_events

from blossomrec.attention import AttentionState, PagedStates
from blossomrec.attention.compress import MeanCompression
from blossomrec.attention.state import Layout, eager, pages
from whole_history import relative_error

LAYOUT = Layout(4, 4, 1, 2, torch.float32, torch.device("cpu"))


def test_what_trimming_leaves():
    attention = make_attention(sinks=2)
    state = in_parts(attention, make_events(100), [100])[1]
    trimmed = state.trim(40)
    assert (trimmed.first, trimmed.length, trimmed.held) == (48, 100, 52)
    assert torch.equal(trimmed.keys, state.keys[48:])
    assert torch.equal(trimmed.block_keys, state.block_keys[3:])
    # Block 6 is open and will be made of keys 80 to 111.
    assert state.trim(0).first == 80
    assert state.trim(100) is state
    assert state.trim(85) is state
    assert trimmed.trim(90) is trimmed
    assert (state.first, state.held) == (0, 100)


@pytest.mark.parametrize("length", [96, 100])
def test_mean_keys_need_no_older_block(length):
    attention = make_attention(compress="mean")
    trimmed = in_parts(attention, make_events(length), [length])[1].trim(0)
    assert (trimmed.first, trimmed.held) == (96, length - 96)
    assert trimmed.nbytes == (length > 96) * (2 * 16 + 1) * 2 * 8 * 4


def test_block_keys_do_not_depend_on_when_events_left():
    attention, x = make_attention(), make_events(333)
    untouched = in_parts(attention, x, [333])[1]
    trimmed = in_parts(attention, x, [100, 1, 111, 121], [0, None, 50])[1]
    # The input of the layer is given, so that its keys do not know what has left.
    torch.testing.assert_close(
        trimmed.block_keys, untouched.block_keys[trimmed.first // 16 :], rtol=1e-5, atol=1e-6
    )


def test_a_state_may_be_extended_twice():
    attention, x = make_attention(), make_events(333)
    start = in_parts(attention, x[:93], [80, 13])[1]
    before = start.to_dict()
    others = [make_events(25, seed) for seed in (1, 2, 3)]
    # The first goes on behind it; the second and third meet an open page that the first has filled.
    states = [attention.extend(each, start)[1] for each in others]
    states.append(attention.extend(others[0][:1], start)[1])
    for other, state in zip(others, states, strict=False):
        expected = in_parts(attention, torch.cat((x[:93], other)), [93, 25])[1].to_dict()
        for name, tensor in state.to_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)
    for name, tensor in start.to_dict().items():
        assert torch.equal(tensor, before[name])
    assert states[0].row is start.row
    # What is full they share.
    shared = {tuple(each.states.pages_of(each.row, 80)) for each in (start, *states)}
    assert len({each.row for each in states}) == 4 and len(shared) == 1
    # And each goes on as if it were alone.
    again = attention.extend(x[93:100], states[0])[0].hidden
    alone = in_parts(attention, torch.cat((x[:93], others[0], x[93:100])), [93, 25, 7])[0]
    assert relative_error(again, alone[-7:]) < 1e-5


def test_threads_that_extend_one_state_do_not_meet():
    state = extended(AttentionState.empty(PagedStates(LAYOUT)), torch.zeros(65, 1, 2)).trim(64)
    found = {}

    def grow(number):
        own = state
        for _ in range(20):
            own = extended(own, torch.full((1, 1, 2), float(number)))
        found[number] = own

    threads = [threading.Thread(target=grow, args=(number,)) for number in range(1, 9)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for number, own in found.items():
        assert (own.keys[65:] == number).all()
        assert (own.values[65:] == number).all()
        assert (own.block_keys[17:] == number).all()


def extended(state, rows):
    """With keys and values [t, 1, 2] more, and the means of complete blocks."""

    def write(step):
        layer = state.states.layers[0]
        eager.append(rows, rows, layer, step)
        eager.close_blocks(layer, step, MeanCompression(block_size=4))

    return state.states.extend([state], [len(rows)], write)[1][0]


@pytest.mark.parametrize("keep", [None, 60])
def test_to_a_dict_and_back(keep, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    attention, x = make_attention(), make_events(150)
    state = in_parts(attention, x[:101], [100, 1])[1]
    state = state if keep is None else state.trim(keep)
    safetensors.save_file(state.to_dict(), tmp_path / "state.safetensors")
    loaded = AttentionState.from_dict(safetensors.load_file(tmp_path / "state.safetensors"))
    assert (loaded.length, loaded.first, loaded.layout) == (101, state.first, state.layout)
    expected, after = attention.extend(x[101:], state)
    output, again = attention.extend(x[101:], loaded)
    assert torch.equal(output.hidden, expected.hidden)
    assert torch.equal(again.block_keys, after.block_keys)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"keys": None}, "no keys"),
        ({"block_keys": torch.zeros(5, 2, 8)}, r"block_keys \[5, 2, 8\] for 101 events"),
        ({"values": torch.zeros(101, 2, 4)}, r"values \[101, 2, 4\]"),
        ({"first": torch.tensor(5)}, "first 5"),
        ({"block_size": torch.tensor(0)}, "block_size 0"),
    ],
    ids=["missing", "blocks", "values", "first", "block size"],
)
def test_a_broken_dict(change, message):
    attention = make_attention()
    tensors = in_parts(attention, make_events(101), [101])[1].to_dict() | change
    with pytest.raises(ValueError, match=message):
        AttentionState.from_dict({name: x for name, x in tensors.items() if x is not None})


def test_wrong_calls():
    attention, x = make_attention(), make_events(10)
    with pytest.raises(ValueError, match=r"counts \[4\] do not fit 1 states and 10"):
        attention.extend_batch(x, [4], [attention.start()])
    with pytest.raises(ValueError, match=r"counts \[-1, 11\]"):
        attention.extend_batch(x, [-1, 11], [attention.start()] * 2)
    with pytest.raises(ValueError, match=r"state 0 has .*block_size=8, reach=32"):
        attention.extend(x, make_attention(block_size=8).start())
    elsewhere = AttentionState.empty(PagedStates(attention.layout))
    with pytest.raises(ValueError, match="state 1 is kept in other pages than state 0"):
        attention.extend_batch(x, [5, 5], [attention.start(), elsewhere])
    with pytest.raises(ValueError, match="only causal"):
        make_attention(causal=False).start()


def test_memory_is_what_is_documented():
    attention, x = make_attention(), make_events(1000)
    page = (2 * 16 + 1) * 2 * 8 * 4
    for parts in ([1000], [1] * 1000):
        state = in_parts(attention, x, parts)[1]
        assert state.nbytes == 63 * page
    kept = state.trim(100)
    assert kept.nbytes == -(-kept.held // 16) * page
    room = PagedStates(LAYOUT, 3, pages=100, users=4, blocks=50)
    assert room.nbytes == 101 * 3 * (2 * 4 + 1) * 2 * 4 + 5 * 50 * 4


def test_what_nobody_holds_returns():
    """Pages that states share leave with the last of them, and all memory with the last state."""
    attention = make_attention()
    state = AttentionState.empty(PagedStates(attention.layout, pages=40, users=4, blocks=9))
    kept = state.states
    state = attention.extend(make_events(90), state)[1]
    assert kept.free_pages == 40 - 6
    other = attention.extend(make_events(30), state.trim(40))[1]
    # It shares the 3 full pages that it holds and has 3 of its own: a copied one, and two more.
    assert (other.first, kept.free_pages) == (48, 40 - 6 - 3)
    del state
    assert kept.free_pages == 40 - 5
    alive = weakref.ref(kept)
    del other
    assert (kept.free_pages, kept.free_users) == (40, 4)
    del kept
    assert alive() is None


def test_growing_copies_a_constant_number_of_rows_for_each_event(monkeypatch):
    copied, grow = [], pages.grown
    monkeypatch.setattr(pages, "grown", lambda x, *more: copied.append(len(x)) or grow(x, *more))
    state = AttentionState.empty(PagedStates(LAYOUT))
    for _ in range(1_000):
        state = extended(state, torch.zeros(1, 1, 2))
    # Pages and block keys, each for four events.
    assert copied and sum(copied) < 3 * 2 * 1_000 / 4
