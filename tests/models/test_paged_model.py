"""A model's states of many users in pages: the hidden states are those of encoding histories."""

import random

import numpy as np
import pytest
import torch

from blossomrec.attention import PagedStates
from blossomrec.attention.state.paged import StepGraph
from blossomrec.data.batch import next_events, pack
from blossomrec.models.state import ModelState
from small_models import NUM_ITEMS, batch_of, hidden_states, random_histories, small_model
from whole_history import relative_error


@pytest.mark.parametrize("options", [{"norm": "pre", "layers": 3}, {"compress": "mean"}], ids=str)
def test_equal_to_encoding_the_whole_history(options):
    model, choose = small_model(**options), random.Random(0)
    states = PagedStates(model.start().layers)
    histories = {states.add(): [] for _ in range(5)}
    last = {}
    for _ in range(60):
        users = choose.sample(sorted(histories), choose.randint(1, 5))
        items = [choose.randrange(NUM_ITEMS) for _ in users]
        hidden = model.extend_paged(next_events(torch.tensor(items)), states, states.step(users))
        for user, item, row in zip(users, items, hidden, strict=True):
            histories[user].append(item)
            last[user] = row
    for user, history in histories.items():
        expected = hidden_states(model, np.array(history))[-1]
        assert relative_error(last[user], expected) < 1e-5


@pytest.mark.parametrize("options", [{"norm": "pre", "layers": 3}, {"compress": "mean"}], ids=str)
def test_whole_histories_and_then_more(options):
    model = small_model(**options)
    states = PagedStates(model.start().layers)
    histories = random_histories(1, 3, 4, 5, 17, 32, 39)
    batch = pack(histories)
    prefill = states.prefill([len(history) for history in histories])
    hidden = model.prefill(batch, states, prefill)
    assert relative_error(hidden, model.queries(batch)) < 1e-6
    more = random_histories(*[9] * len(histories), seed=1)
    for items in np.stack(more, 1):
        hidden = model.extend_paged(
            next_events(torch.from_numpy(items)), states, states.step(prefill.users)
        )
    grown = [np.concatenate(pair) for pair in zip(histories, more, strict=True)]
    assert relative_error(hidden, model.queries(pack(grown))) < 1e-5


def test_from_a_state_to_pages_and_back():
    model = small_model()
    items = torch.randint(0, NUM_ITEMS, (41,), generator=torch.Generator().manual_seed(0))
    _, state = model.extend(batch_of(items[:30]), model.start())
    states = PagedStates(model.start().layers)
    user = states.add(state.layers)

    def take(items, step):
        return model.extend_paged(next_events(items), states, step)

    run = StepGraph(take, states, 2)
    hidden = torch.cat([run(item, [user]) for item in items[30:40].split(1)])
    expected, grown = model.extend(batch_of(items[30:40]), state)
    assert relative_error(hidden, expected) < 1e-5
    back = ModelState(states.read(user), hidden[-1])
    assert back.length == grown.length
    output, wanted = (model.extend(batch_of(items[40:]), each)[0] for each in (back, grown))
    assert relative_error(output, wanted) < 1e-5


def test_wrong_calls():
    model = small_model()
    states = PagedStates(model.start().layers[:1])
    step = states.step([states.add()])
    with pytest.raises(ValueError, match="1 layers: this model has 2"):
        model.extend_paged(pack([[0]]), states, step)
    batch = pack(random_histories(5))
    with pytest.raises(ValueError, match="1 layers: this model has 2"):
        model.prefill(batch, states, states.prefill([5]))
    dense = small_model(attention="full")
    assert not dense.captures_steps
    with pytest.raises(ValueError, match="attention is full: only blossom"):
        dense.stack()[0].prefill(torch.zeros(5, 16), batch.cu_seqlens, states.layers[0], None)
    with pytest.raises(RuntimeError, match="training mode"):
        model.train().extend_paged(pack([[0]]), states, step)
    with pytest.raises(ValueError, match="reach is 0: dense attention"):
        PagedStates(small_model(attention="full").start().layers)
