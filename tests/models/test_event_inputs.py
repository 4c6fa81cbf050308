"""Kinds, context and users: what is kept and asked later is what whole histories give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from blossomrec.config import ModelConfig
from blossomrec.data.batch import pack
from blossomrec.data.features import Categories, FeatureTable, Numbers, Titles
from blossomrec.data.fields import ContextField, EventFields, Tables
from blossomrec.data.history import GrowingHistory, History
from blossomrec.errors import ConfigError
from blossomrec.models.event_inputs import FEW, Asked, EventInputs
from blossomrec.models.features import UserContent
from blossomrec.models.inputs import inputs_of
from small_models import NUM_ITEMS, small_model
from whole_history import relative_error

NOW = 1_700_000_000
USERS = 6
KINDS = ("click", "cart", "buy")
MANY = tuple(f"campaign {n}" for n in range(FEW))
CONTEXT = (
    ContextField("shop", "category", ("web", "app")),
    ContextField("price", "number", mean=10.0, deviation=4.0),
    ContextField("campaign", "category", MANY),
)
SEEN = {"event_kinds": "on", "request_kind": "on", "context": "on", "user_table": "on"}
FORMS = [
    {},
    {"time_gap": "on", "request_time": "on", "clock": "on", "time_share": 0.5},
    {"norm": "pre", "request_kind": "off"},
    {"attention": "full", "event_kinds": "off"},
    {"attention_impl": "torch", "context": "off"},
]


def tables() -> Tables:
    ages = Numbers(np.array([20, 30, np.nan, 50, 60, 20], np.float32))
    names = Titles.of(["sports", "music"])
    values = np.array([1, 2, 0, 1, 1, 2, 2, 0], np.int32)
    likes = Categories(names, values, np.array([0, 2, 3, 4, 6, 7, 8]))
    users = FeatureTable({"age": ages, "likes": likes}, USERS)
    return Tables(users=users, fields=EventFields(KINDS, CONTEXT))


def model_of(**options: Any) -> Any:
    """As ``small_model``, with embeddings of what is seen that matter."""
    model = small_model(tables(), **SEEN | options)
    for part in (model.event_inputs, model.request_inputs, model.user_content):
        for parameter in () if part is None else part.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def history(length: int, seed: int = 0) -> History:
    rng = np.random.default_rng(seed)
    times = NOW + np.cumsum(rng.integers(0, 40_000, length))
    kinds = rng.integers(0, 4, length)
    columns = [rng.integers(0, 3, length), rng.normal(10, 4, length), rng.integers(0, 200, length)]
    context = np.stack(columns, 1).astype(np.float32)
    context[rng.random(context.shape) < 0.2] = np.nan
    return History(
        rng.integers(0, NUM_ITEMS, length),
        times,
        np.append(times[1:], times[-1] + 5_000),
        kinds,
        np.append(kinds[1:], 3),
        context,
        np.full(length, seed % (USERS + 1) - 1),
    )


def asked_of(*events: History) -> Asked:
    moments = torch.tensor([int(each.asked[-1]) for each in events])  # pyright: ignore[reportOptionalSubscript]
    lasts = torch.tensor([int(each.times[-1]) for each in events])  # pyright: ignore[reportOptionalSubscript]
    kinds = torch.tensor([int(each.asked_kinds[-1]) for each in events])  # pyright: ignore[reportOptionalSubscript]
    return Asked(moments - lasts, moments, kinds)


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_kept_states_equal_whole_histories(options):
    model, events = model_of(**options), history(39, 3)
    expected = model.queries(pack([events], model.inputs))
    state = model.start()
    for start, stop in ((0, 17), (17, 18), (18, 33), (33, 34), (34, 39)):
        batch = pack([events[start:stop]], model.kept_inputs)
        _, state = model.extend(batch, state)
    assert relative_error(model.ask(state.query, asked_of(events)), expected) < 1e-5


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_whole_histories_in_pages_equal_them_too(options):
    model, many = model_of(**options), [history(n, n) for n in (1, 5, 16, 33)]
    states = model.states()
    step, _ = states.step([model.start(states).kept for _ in many], list(map(len, many)))
    batch = pack(many, model.inputs)
    hidden = model.prefill(batch, states, step)
    assert relative_error(model.ask(hidden, asked_of(*many)), model.queries(batch)) < 1e-5


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec", "gru4rec"])
@pytest.mark.parametrize("name", ["kinds", "context", "users", "asked_kinds"])
def test_every_input_changes_the_answer(backbone, name):
    model, events = model_of(backbone=backbone), history(9, 2)
    changed = getattr(events, name).copy()
    changed[-1] = (2, 30, 7) if name == "context" else (changed[-1] + 1) % 4
    changed = np.full_like(changed, 4) if name == "users" else changed
    other = replace(events, **{name: changed})
    one, another = (model.queries(pack([each], model.inputs)) for each in (events, other))
    assert relative_error(one, another) > 1e-3
    unknown = History(events.items).asked_for(context=len(CONTEXT))
    assert model.queries(pack([unknown], model.inputs)).isfinite().all()


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec"])
def test_the_wanted_kind_changes_nothing_that_is_kept(backbone):
    model, events = model_of(backbone=backbone), history(9)
    other = events.asked_for(kind=1, context=len(CONTEXT))
    first, second = (pack([each], model.inputs) for each in (events, other))
    assert torch.equal(model.open_queries(first), model.open_queries(second))


@pytest.mark.parametrize("options", [{}, {"backbone": "gru4rec"}], ids=str)
def test_the_future_changes_nothing(options):
    model, events = model_of(**options), history(20, 1)
    changed = replace(
        events,
        kinds=np.append(events.kinds[:11], 3 - events.kinds[11:].clip(max=3)),
        context=np.concatenate([events.context[:11], np.zeros_like(events.context[11:])]),
        asked_kinds=np.append(events.asked_kinds[:11], np.ones(9, np.int64)),
    )
    one, other = (model.encode(pack([each], model.inputs)).hidden for each in (events, changed))
    assert torch.equal(one[:11], other[:11])
    assert not torch.equal(one[11:], other[11:])


def test_a_model_begins_as_one_that_sees_ids_alone():
    plain = small_model().queries(pack([history(9)]))
    model, events = small_model(tables(), **SEEN), history(9)
    assert relative_error(model.queries(pack([events], model.inputs)), plain) < 1e-6


def test_a_mask_has_the_wanted_kind_and_no_context():
    model, events = model_of(backbone="bert4rec"), history(6)
    seen = []
    model.event_inputs.register_forward_hook(lambda _, given, __: seen.append(given))
    model.queries(pack([events], model.inputs))
    _, _, kinds, context, _ = seen[0]
    assert kinds.tolist() == [*events.kinds.tolist(), 3]
    assert context[-1].isnan().all() and torch.equal(
        context[:-1].nan_to_num(), torch.from_numpy(events.context).nan_to_num()
    )


def test_one_row_is_the_sum_of_its_embeddings():
    inputs = EventInputs(5, gap=True, clock=True, kinds=3, context=CONTEXT)
    for parameter in inputs.parameters():
        torch.nn.init.normal_(parameter)
    rows, (many,) = inputs.embeddings.weight, inputs.of_many
    thursday_ten = 36_000
    given = torch.tensor([3]), torch.tensor([thursday_ten]), torch.tensor([2])
    found = inputs(*given, torch.tensor([[1.0, 14.0, 200.0]]))
    first = 64 + 24 + 7
    expected = rows[5] + rows[64 + 10] + rows[64 + 24 + 3] + rows[first + 2] + rows[first + 4 + 1]
    torch.testing.assert_close(found[0], expected + 1.0 * rows[-1] + many.weight[200])
    unknown = inputs(*given, torch.full((1, 3), torch.nan))
    expected += rows[first + 4] - rows[first + 4 + 1] + many.weight[0]
    torch.testing.assert_close(unknown[0], expected)


def test_users_are_rows_of_their_table():
    content = UserContent(tables().users or {}, 7)
    age = (np.array([20, 30, 50, 60, 20]) - 36) / np.std([20, 30, 50, 60, 20])
    found = content(torch.tensor([5, -1, 0, 2]))
    # Unknown, sports, music; the age; whether it is nobody known.
    expected = [[1, 0, 0, age[4], 0], [0, 0, 0, 0, 1], [0, 1, 1, age[0], 0], [0, 1, 0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_categories_of_many_names_are_looked_up_by_themselves():
    names = Titles.of([f"town {n}" for n in range(FEW + 5)])
    towns = Categories(names, np.array([1, 7, 260, 0], np.int32), np.array([0, 2, 3, 4]))
    content = UserContent({"town": towns}, 4)
    assert content.width == 1
    (table,) = content.of_many
    torch.nn.init.normal_(table.bag.weight)
    weight = table.bag.weight
    expected = torch.stack([weight[0], torch.zeros(4), weight[1] + weight[7]])
    torch.testing.assert_close(content.vectors(torch.tensor([2, -1, 0])), expected)
    known = Tables(users=FeatureTable({"town": towns}, 3))
    model: Any = small_model(known, user_table="on")
    torch.nn.init.normal_(model.user_content.of_many[0].bag.weight)
    at = [History(np.arange(5), users=np.full(5, row)) for row in (-1, 0, 1)]
    first, second, third = (model.queries(pack([each], model.inputs)) for each in at)
    assert relative_error(first, second) > 1e-3 < relative_error(second, third)


def test_inputs_are_those_that_are_seen():
    assert inputs_of(ModelConfig(**SEEN)) == (
        "items",
        "kinds",
        "asked_kinds",
        "context",
        "users",
    )
    with pytest.raises(ConfigError, match=r"model.user_table is 'on': a table of users is needed"):
        small_model(Tables(), user_table="on")


def test_a_growing_history_keeps_all_of_an_event():
    events, grown = history(40), GrowingHistory(("items", "kinds", "context"))
    for start in range(0, 40, 7):
        grown.extend(events[start : start + 7])
    np.testing.assert_array_equal(grown.events.context, events.context)
    np.testing.assert_array_equal(grown.events.kinds, events.kinds)
    assert grown.at(3)[:2] == (events.items[3], events.kinds[3])
