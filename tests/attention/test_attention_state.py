"""Kept states as values: trimming, extending twice, threads, tensors and back, memory."""

import threading

import pytest
import torch
from extending import in_parts, make_attention, make_events

from blossomrec.attention import AttentionState
from whole_history import relative_error


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
    assert trimmed.nbytes == trimmed.held * 2 * 2 * 8 * 4


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
    # There is room for one of them: the second and third meet rows that the first has filled.
    assert len(start.events.buffer) >= 93 + 25
    states = [attention.extend(each, start)[1] for each in others]
    states.append(attention.extend(others[0][:1], start)[1])
    for other, state in zip(others, states, strict=False):
        expected = in_parts(attention, torch.cat((x[:93], other)), [93, 25])[1].to_dict()
        for name, tensor in state.to_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)
    for name, tensor in start.to_dict().items():
        assert torch.equal(tensor, before[name])
    # And each goes on as if it were alone.
    again = attention.extend(x[93:100], states[0])[0].hidden
    alone = in_parts(attention, torch.cat((x[:93], others[0], x[93:100])), [93, 25, 7])[0]
    assert relative_error(again, alone[-7:]) < 1e-5


def test_threads_that_extend_one_state_do_not_meet():
    state = AttentionState.empty(
        num_kv_heads=1, head_dim=2, block_size=4, reach=4, like=torch.zeros(())
    )
    rows = torch.zeros(64, 1, 2)
    state = state.extend(rows, rows, lambda windows: windows.mean(2)).trim(64)
    state = state.extend(rows[:1], rows[:1], lambda windows: windows.mean(2))
    found = {}

    def grow(number):
        own = state
        for _ in range(20):
            value = torch.full((1, 1, 2), float(number))
            own = own.extend(value, value, lambda windows: windows.mean(2))
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
    with pytest.raises(ValueError, match=r"state 0 has .*\(8, 32"):
        attention.extend(x, make_attention(block_size=8).start())
    with pytest.raises(ValueError, match="only causal"):
        make_attention(causal=False).start()


def test_memory_is_what_is_documented():
    attention, x = make_attention(), make_events(1000)
    state = in_parts(attention, x, [1000])[1]
    used = (2 * 1000 + 62) * 2 * 8 * 4
    assert state.nbytes == used
    state = in_parts(attention, x, [1] * 1000)[1]
    assert used <= state.nbytes <= 1.5 * used + 4096
    kept = state.trim(100)
    assert kept.nbytes == (2 * kept.held + kept.held // 16) * 2 * 8 * 4


def test_growing_copies_a_constant_number_of_rows_for_each_event():
    state = AttentionState.empty(
        num_kv_heads=1, head_dim=2, block_size=16, reach=0, like=torch.zeros(())
    )
    row, copied = torch.zeros(1, 1, 2), 0
    for _ in range(3_000):
        before = state.events
        state = state.extend(row, row, None)
        copied += before.filled if state.events is not before else 0
    assert copied < 3 * 3_000
