"""States of one size, extended event by event, give what encoding whole histories gives."""

import numpy as np
import pytest
import torch

from blossomrec.data.batch import pack
from blossomrec.errors import DataError
from blossomrec.models.peers.linrec import LinRec
from blossomrec.models.recurrent import RecurrentState
from small_models import NUM_ITEMS, batch_of, hidden_states, random_histories, small_model
from whole_history import relative_error

FORMS = [
    {"attention": "linrec"},
    {"attention": "linrec", "norm": "pre", "layers": 3, "residual": "gated"},
    {"backbone": "mamba4rec", "state_size": 5},
    {"backbone": "mamba4rec", "norm": "pre", "layers": 1, "feed_forward": "swiglu"},
    {"backbone": "gru4rec", "norm": "pre", "layers": 2},
]
forms = pytest.mark.parametrize(
    "options", FORMS, ids=lambda form: "-".join(map(str, form.values()))
)


def in_parts(model, history, parts):
    """Hidden states and the state after them."""
    state, outputs = model.start(), []
    for part in torch.as_tensor(history).split(parts):
        hidden, state = model.extend(batch_of(part), state)
        outputs.append(hidden)
    return torch.cat(outputs), state


@forms
@pytest.mark.parametrize("parts", [[333], [1] * 90, [80, 1, 15, 16, 1, 1, 64, 65], [200, 1, 79]])
def test_equal_to_encoding_the_whole_history(options, parts):
    model = small_model(**options)
    (history,) = random_histories(sum(parts))
    hidden, state = in_parts(model, history, parts)
    assert relative_error(hidden, hidden_states(model, history)) < 1e-5
    assert torch.equal(state.query, hidden[-1:])
    assert state.length == sum(parts)


@forms
def test_a_state_does_not_grow(options):
    model = small_model(**options)
    (history,) = random_histories(300)
    sizes = {in_parts(model, history[:count], [count])[1].nbytes for count in (1, 10, 300)}
    assert len(sizes) == 1


@forms
def test_users_together_are_what_they_are_alone(options):
    model = small_model(**options)
    lengths, counts = (0, 70, 3, 12, 25), [5, 1, 0, 40, 2]
    old, new = random_histories(*lengths), random_histories(*counts, seed=1)
    states = [in_parts(model, h, [len(h)])[1] if len(h) else model.start() for h in old]
    hidden, extended = model.extend_batch(batch_of(*new), states)
    whole = [np.concatenate(pair) for pair in zip(old, new, strict=True)]
    ends = zip(whole, counts, strict=True)
    expected = [hidden_states(model, each)[len(each) - count :] for each, count in ends]
    assert relative_error(hidden, torch.cat(expected)) < 1e-5
    for state, each in zip(extended, whole, strict=True):
        assert state.length == len(each)
        assert relative_error(state.query, hidden_states(model, each)[-1:]) < 1e-5
    # Two steps of one event each for everybody.
    for items in random_histories(5, 5, seed=2):
        hidden, extended = model.extend_batch(batch_of(*items[:, None]), extended)
        whole = [np.append(each, item) for each, item in zip(whole, items, strict=True)]
    expected = torch.cat([hidden_states(model, each)[-1:] for each in whole])
    assert relative_error(hidden, expected) < 1e-5


@forms
def test_a_state_may_be_extended_twice(options):
    model = small_model(**options)
    old, one, other = random_histories(50, 20, 20)
    state = in_parts(model, old, [50])[1]
    for new in (one, other):
        end = model.extend(batch_of(new), state)[1]
        expected = hidden_states(model, np.concatenate((old, new)))[-1:]
        assert relative_error(end.query, expected) < 1e-5
    assert state.length == 50


@forms
def test_offline_queries_and_scores(options):
    model = small_model(**options)
    (history,) = random_histories(model.max_len)
    _, state = in_parts(model, history, [30, *[1] * (model.max_len - 30)])
    expected = model.scores(model.queries(pack([history])), 0, NUM_ITEMS)
    found = model.scores(state.query, 0, NUM_ITEMS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@forms
@pytest.mark.parametrize("count", [0, 1, 70])
def test_to_a_dict_and_back(options, count, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = small_model(**options)
    history, new = random_histories(count, 9)
    state = in_parts(model, history, [count])[1].trim(3) if count else model.start()
    safetensors.save_file(state.to_dict(), tmp_path / "state.safetensors")
    loaded = RecurrentState.from_dict(safetensors.load_file(tmp_path / "state.safetensors"))
    assert loaded.length == count
    found, expected = (model.extend(batch_of(new), each)[0] for each in (loaded, state))
    assert torch.equal(found, expected)


def test_wrong_calls():
    model = small_model(attention="linrec")
    with pytest.raises(DataError, match="no events"):
        _ = model.start().query
    with pytest.raises(ValueError, match="1 states for 2 histories"):
        model.extend_batch(batch_of([1], [2]), [model.start()])
    with pytest.raises(ValueError, match="another model"):
        model.extend(batch_of([1]), small_model(attention="linrec", layers=3).start())
    with pytest.raises(RuntimeError, match="training mode"):
        model.train().extend(batch_of([1]), model.start())
    with pytest.raises(ValueError, match="keeps no pages"):
        model.states()
    with pytest.raises(ValueError, match="only causal"):
        LinRec(hidden_size=8, num_heads=2, num_kv_heads=1, causal=False).initial(1)


@pytest.mark.parametrize("name", ["kept.0", "length", "last"])
def test_a_dict_with_a_hole(name):
    tensors = in_parts(small_model(attention="linrec"), [1, 2, 3], [3])[1].to_dict()
    del tensors[name]
    with pytest.raises(DataError, match=r"has no kept|has no length|is missing"):
        RecurrentState.from_dict(tensors)
