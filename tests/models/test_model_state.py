"""A user's state, extended event by event, gives what encoding the whole history gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blossomrec.data.batch import pack
from blossomrec.errors import ConfigError, DataError
from blossomrec.models import FullAttention
from blossomrec.models.state import ModelState
from small_models import NUM_ITEMS, batch_of, hidden_states, random_histories, small_model
from whole_history import Recorder, relative_error

FORMS = [
    {"attention": attention, "norm": norm, "layers": layers, "compress": compress, "sinks": sinks}
    for attention, norm, layers, compress, sinks in [
        ("blossom", "post", 3, "mlp", 0),
        ("blossom", "pre", 2, "mean", 3),
        ("full", "post", 2, "mlp", 0),
        ("full", "pre", 3, "mlp", 0),
        ("window", "post", 2, "mlp", 0),
    ]
]
FORMS.append({"fusion": "union", "layers": 2, "sinks": 3})
FORMS.append({"fusion": "union", "near_bias": "on"})
forms = pytest.mark.parametrize(
    "options", FORMS, ids=lambda form: "-".join(map(str, form.values()))
)


def in_parts(model, history, parts, keeps=()):
    """Hidden states, the state after them, and of each event the first position it saw."""
    state, outputs, first = model.start(), [], []
    for number, part in enumerate(torch.as_tensor(history).split(parts)):
        hidden, state = model.extend(batch_of(part), state)
        outputs.append(hidden)
        first += [state.layers[0].first] * len(part)
        if number < len(keeps) and keeps[number] is not None:
            state = state.trim(keeps[number])
    return torch.cat(outputs), state, torch.tensor(first)


@forms
@pytest.mark.parametrize("parts", [[333], [1] * 90, [80, 1, 15, 16, 17, 31, 32, 33], [200, 1, 79]])
def test_equal_to_encoding_the_whole_history(options, parts):
    model = small_model(**options)
    (history,) = random_histories(sum(parts))
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch)
        hidden, state, first = in_parts(model, history, parts)
        recorder.replay(patch, first)
        assert relative_error(hidden, hidden_states(model, history)) < 1e-5
    assert torch.equal(state.query, hidden[-1:])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    parts=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    keeps=st.lists(st.none() | st.integers(0, 100), max_size=8),
    form=st.sampled_from(FORMS[:2]),
    seed=st.integers(0, 1000),
)
def test_random_splits_and_trims(parts, keeps, form, seed):
    model = small_model(**form)
    (history,) = random_histories(sum(parts), seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch)
        hidden, _, first = in_parts(model, history, parts, keeps)
        recorder.replay(patch, first)
        assert relative_error(hidden, hidden_states(model, history)) < 1e-5


@forms
def test_offline_queries_and_scores_up_to_the_longest_history(options):
    model = small_model(**options)
    (history,) = random_histories(model.max_len)
    _, state, _ = in_parts(model, history, [30, *[1] * (model.max_len - 30)])
    expected = model.queries(pack([history]))
    torch.testing.assert_close(state.query, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        model.scores(state.query, 0, NUM_ITEMS),
        model.scores(expected, 0, NUM_ITEMS),
        rtol=1e-4,
        atol=1e-4,
    )


@forms
def test_users_together_are_what_they_are_alone(options):
    model = small_model(**options)
    lengths, counts = (0, 70, 3, 12, 25), [5, 1, 0, 40, 2]
    old, new = random_histories(*lengths), random_histories(*counts, seed=1)
    states = [in_parts(model, h, [len(h)])[1] if len(h) else model.start() for h in old]
    hidden, extended = model.extend_batch(batch_of(*new), states)
    alone = [model.extend(batch_of(part), state) for part, state in zip(new, states, strict=True)]
    assert relative_error(hidden, torch.cat([each for each, _ in alone])) < 1e-5
    for state, (_, other) in zip(extended, alone, strict=True):
        assert state.length == other.length
        torch.testing.assert_close(state.query, other.query, rtol=1e-4, atol=1e-5)


@forms
def test_a_state_may_be_extended_twice(options):
    model = small_model(**options)
    old, one, other = random_histories(50, 20, 20)
    state = in_parts(model, old, [50])[1]
    ends = [model.extend(batch_of(new), state)[1] for new in (one, other)]
    for new, end in zip((one, other), ends, strict=True):
        expected = hidden_states(model, np.concatenate((old, new)))[-1:]
        torch.testing.assert_close(end.query, expected, rtol=1e-4, atol=1e-5)
    assert state.length == 50


def test_dense_attention_sees_nothing_that_has_left():
    model = small_model(attention="full", layers=1)
    (history,) = random_histories(60)
    _, state, _ = in_parts(model, history[:50], [50])
    hidden, after = model.extend(batch_of(history[50:]), state.trim(13))
    # One layer with rotary positions: only distances count.
    expected = hidden_states(model, history[37:])[13:]
    assert relative_error(hidden, expected) < 1e-5
    assert (after.length, after.layers[0].held) == (60, 23)


@forms
@pytest.mark.parametrize("count", [0, 1, 70])
def test_to_a_dict_and_back(options, count, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = small_model(**options)
    history, new = random_histories(count, 9)
    state = in_parts(model, history, [count])[1].trim(30) if count else model.start()
    safetensors.save_file(state.to_dict(), tmp_path / "state.safetensors")
    loaded = ModelState.from_dict(safetensors.load_file(tmp_path / "state.safetensors"))
    assert loaded.length == count
    found, expected = (model.extend(batch_of(new), each)[0] for each in (loaded, state))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "name, message",
    [
        ("layers.1.keys", "has no keys"),
        ("last", "last hidden state is missing"),
        ("layers.0", r"layers \[1\]"),
    ],
)
def test_a_dict_with_a_hole(name, message):
    tensors = in_parts(small_model(), random_histories(20)[0], [20])[1].to_dict()
    kept = {each: x for each, x in tensors.items() if not each.startswith(name)}
    with pytest.raises(DataError, match=message):
        ModelState.from_dict(kept)


def test_a_dict_of_something_else():
    with pytest.raises(DataError, match=r"unknown tensor 'embeddings.weight'"):
        ModelState.from_dict({"embeddings.weight": torch.zeros(3)})
    tensors = in_parts(small_model(), random_histories(20)[0], [20])[1].to_dict()
    shifted = tensors | {"layers.0.first": torch.tensor(4)}
    with pytest.raises(DataError, match=r"hold events \[\(0, 20\), \(4, 24\)\]"):
        ModelState.from_dict(shifted)


def test_memory_counts_every_layer():
    state = in_parts(small_model(layers=3), random_histories(45)[0], [45])[1]
    # 12 pages of 4 keys and values and a block key, 2 heads of size 4, in each layer; the last
    # hidden state.
    assert state.nbytes == 3 * 12 * (2 * 4 + 1) * 2 * 4 * 4 + 16 * 4


def test_wrong_calls():
    model = small_model()
    with pytest.raises(DataError, match="no events"):
        _ = model.start().query
    with pytest.raises(ValueError, match="state 0 has 3 layers: this model has 2"):
        model.extend(batch_of([1]), small_model(layers=3).start())
    with pytest.raises(ValueError, match="this attention has"):
        model.extend(batch_of([1]), small_model(attention="full").start())
    with pytest.raises(RuntimeError, match="training mode"):
        model.train().extend(batch_of([1]), model.start())


def test_what_sees_both_directions_keeps_no_state():
    model = small_model(backbone="bert4rec")
    with pytest.raises(ConfigError, match="backbone bert4rec keeps no state"):
        model.start()
    with pytest.raises(ConfigError, match="backbone bert4rec keeps no state"):
        model.extend(batch_of([1]), ModelState(()))


def test_a_failed_extension_leaves_the_state_usable():
    model = small_model()
    old, new = random_histories(30, 6)
    state = in_parts(model, old, [30])[1]
    with pytest.raises(IndexError):
        model.extend(batch_of([3, NUM_ITEMS]), state)
    broken = model.layers[1].attention.query
    model.layers[1].attention.query = None
    with pytest.raises(AttributeError):
        model.extend(batch_of([7, 7]), state)
    model.layers[1].attention.query = broken
    expected = hidden_states(model, np.concatenate((old, new)))[-6:]
    hidden, _ = model.extend(batch_of(new), state)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)


def test_bidirectional_dense_attention_has_no_state():
    with pytest.raises(ValueError, match="only causal"):
        FullAttention(hidden_size=8, num_heads=2, num_kv_heads=1, causal=False).start()
