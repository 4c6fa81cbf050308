"""A model's states of many users in pages: the hidden states are those of encoding histories."""

import random

import numpy as np
import pytest
import torch

from blossomrec.attention.state import AttentionState, StepGraph
from blossomrec.data.batch import next_events, pack
from blossomrec.models.state import ModelState
from small_models import NUM_ITEMS, batch_of, hidden_states, random_histories, small_model
from whole_history import relative_error

FORMS = [
    {"norm": "pre", "layers": 3},
    {"compress": "mean"},
    {"fusion": "union"},
    {"fusion": "union", "near_bias": "on"},
    {"attention": "full"},
    {"attention": "window"},
]
forms = pytest.mark.parametrize("options", FORMS, ids=str)


@forms
def test_equal_to_encoding_the_whole_history(options):
    model, choose = small_model(**options), random.Random(0)
    states = model.states()
    histories, kept, last = {user: [] for user in range(5)}, {}, {}
    for user in histories:
        kept[user] = model.start(states).kept
    for _ in range(60):
        users = choose.sample(sorted(histories), choose.randint(1, 5))
        items = [choose.randrange(NUM_ITEMS) for _ in users]
        step, after = states.step([kept[user] for user in users])
        hidden = model.extend_paged(next_events(torch.tensor(items)), states, step)
        for user, item, row, state in zip(users, items, hidden, after, strict=True):
            histories[user].append(item)
            last[user], kept[user] = row, state
    for user, history in histories.items():
        expected = hidden_states(model, np.array(history))[-1]
        assert relative_error(last[user], expected) < 1e-5


@forms
def test_whole_histories_and_then_more(options):
    model = small_model(**options)
    states = model.states()
    histories = random_histories(1, 3, 4, 5, 17, 32, 39)
    batch, starts = pack(histories), [model.start(states).kept for _ in histories]
    step, kept = states.step(starts, [len(history) for history in histories])
    hidden = model.prefill(batch, states, step)
    assert relative_error(hidden, model.queries(batch)) < 1e-6
    more = random_histories(*[9] * len(histories), seed=1)
    for items in np.stack(more, 1):
        step, kept = states.step(kept)
        hidden = model.extend_paged(next_events(torch.from_numpy(items)), states, step)
    grown = [np.concatenate(pair) for pair in zip(histories, more, strict=True)]
    assert relative_error(hidden, model.queries(pack(grown))) < 1e-5


def test_steps_of_many_and_extensions_of_one_are_of_one_form():
    model = small_model()
    items = torch.randint(0, NUM_ITEMS, (41,), generator=torch.Generator().manual_seed(0))
    states = model.states()
    _, state = model.extend(batch_of(items[:30]), model.start(states))

    def step(item, where):
        return model.extend_paged(next_events(item), states, where)

    run, kept = StepGraph(step, states, 2), []
    for item in items[30:40].split(1):
        hidden, kept = run(item, kept or [state.kept])
    # The state is what it was, and gets pages of its own for other events.
    grown = model.extend(batch_of(items[30:40]), state)[1]
    for after in (ModelState(kept[0], hidden[0]), grown):
        assert after.length == 40
        expected = hidden_states(model, items)[-1:]
        assert relative_error(model.extend(batch_of(items[40:]), after)[0], expected) < 1e-5


def test_models_of_a_layout_share_their_pages():
    one, other = (small_model() for _ in range(2))
    first, second = one.start(), other.start()
    assert first.kept.states is second.kept.states
    assert first.kept.states is not small_model(layers=3).start().kept.states


def test_wrong_calls():
    model = small_model()
    states = small_model(layers=1).states()
    step, _ = states.step([AttentionState.empty(states)])
    with pytest.raises(ValueError, match="1 layers: this model has 2"):
        model.extend_paged(next_events(torch.tensor([0])), states, step)
    with pytest.raises(ValueError, match="1 layers: this model has 2"):
        model.prefill(pack(random_histories(1)), states, step)
    assert not small_model(attention="full").captures_steps
    with pytest.raises(RuntimeError, match="training mode"):
        model.train().extend_paged(next_events(torch.tensor([0])), model.states(), step)
