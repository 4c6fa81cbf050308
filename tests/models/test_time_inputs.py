"""Models that see times: what is kept and asked later is what whole histories give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from blossomrec import BlossomRec
from blossomrec.attention.rotary import cos_sin, rotate, rotate_by, time_cos_sin
from blossomrec.config import EvaluationConfig, ModelConfig, RunConfig
from blossomrec.data.batch import pack
from blossomrec.data.history import History
from blossomrec.errors import ConfigError
from blossomrec.models.event_inputs import Asked
from blossomrec.models.inputs import inputs_of, resolve_inputs
from blossomrec.models.state import ModelState
from small_models import NUM_ITEMS, small_model
from small_options import SMALL
from whole_history import relative_error

NOW = 1_700_000_000
TIMED = {"time_gap": "on", "request_time": "on", "clock": "on"}
FORMS = [
    {},
    {"time_share": 0.5},
    {"norm": "pre"},
    {"attention": "full", "time_share": 0.5},
    {"request_time": "off"},
    {"attention_impl": "torch", "time_share": 0.25},
]


def timed_model(**options: Any) -> Any:
    """As ``small_model``, with embeddings of times that matter."""
    model = small_model(**TIMED | options)
    for part in (model.event_inputs, model.request_inputs):
        for parameter in () if part is None else part.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def history(length: int, seed: int = 0) -> History:
    rng = np.random.default_rng(seed)
    times = NOW + np.cumsum(rng.integers(0, 40_000, length))
    asked = np.append(times[1:], times[-1] + 5_000)
    return History(rng.integers(0, NUM_ITEMS, length), times, asked)


def asked_of(events: History) -> Asked:
    assert events.times is not None and events.asked is not None
    gap, at = events.asked[-1:] - events.times[-1:], events.asked[-1:]
    return Asked(torch.from_numpy(gap), torch.from_numpy(at))


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_kept_states_equal_whole_histories(options):
    model, events = timed_model(**options), history(39)
    expected = model.queries(pack([events], model.inputs))
    state = model.start()
    for start, stop in ((0, 17), (17, 18), (18, 33), (33, 34), (34, 39)):
        batch = pack([events[start:stop]], model.kept_inputs)
        hidden, state = model.extend(batch, state)
    assert relative_error(model.ask(state.query, asked_of(events)), expected) < 1e-5
    assert relative_error(model.ask(hidden[-1:], asked_of(events)), expected) < 1e-5
    again = ModelState.from_dict(state.to_dict())
    assert again.seconds == state.seconds == events.times[-1]
    more = model.extend(pack([events[:1]], model.kept_inputs), again)[0]
    assert torch.equal(more, model.extend(pack([events[:1]], model.kept_inputs), state)[0])


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_whole_histories_in_pages_equal_them_too(options):
    model, many = timed_model(**options), [history(n, n) for n in (1, 5, 16, 33)]
    states = model.states()
    starts = [model.start(states).kept for _ in many]
    step, _ = states.step(starts, [len(each) for each in many])
    batch = pack(many, model.inputs)
    hidden = model.prefill(batch, states, step)
    assert relative_error(hidden, model.open_queries(batch)) < 1e-6
    told = map(asked_of, many)
    gaps, moments = zip(*((each.gap, each.second) for each in told), strict=True)
    asked = Asked(torch.cat(gaps), torch.cat(moments))
    assert relative_error(model.ask(hidden, asked), model.queries(batch)) < 1e-5


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec"])
def test_what_is_asked_changes_the_answer_and_nothing_that_is_kept(backbone):
    model, events = timed_model(backbone=backbone), history(9)
    later = replace(events, asked=events.asked + 1_000_000)
    first, second = (pack([each], model.inputs) for each in (events, later))
    assert torch.equal(model.open_queries(first), model.open_queries(second))
    assert relative_error(model.queries(second), model.queries(first)) > 1e-3


@pytest.mark.parametrize("options", [{}, {"time_share": 0.5}, {"backbone": "gru4rec"}], ids=str)
def test_the_future_changes_nothing(options):
    model, events = timed_model(**options), history(20)
    assert events.times is not None and events.asked is not None
    times, asked = events.times.copy(), events.asked.copy()
    times[11:] += 77_777
    asked[11:] += 99_999
    changed = History(events.items, times, asked)
    one, other = (model.encode(pack([each], model.inputs)).hidden for each in (events, changed))
    assert torch.equal(one[:11], other[:11])
    assert not torch.equal(one[11:], other[11:])


@pytest.mark.parametrize("attention", [{"compress": "mean"}, {"attention": "full"}], ids=str)
def test_only_differences_of_time_count_for_rotary_embedding(attention):
    # Compression by an MLP is no sum of rotated keys, neither over positions nor over times.
    options = {"time_gap": "off", "request_time": "off", "clock": "off", "time_share": 0.5}
    model, events = timed_model(**options | attention), history(30)
    assert events.times is not None
    moved = replace(events, times=events.times + 12_345_678)
    one, other = (model.encode(pack([each], model.inputs)).hidden for each in (events, moved))
    assert relative_error(one, other) < 1e-4
    squeezed = replace(events, times=events.times[:1] + (events.times - events.times[:1]) // 2)
    third = model.encode(pack([squeezed], model.inputs)).hidden
    assert relative_error(one, third) > 1e-3


def test_rotation_by_a_table_of_positions_is_rotation_by_position():
    x, positions = torch.randn(7, 3, 16), torch.arange(7) * 5
    angles = cos_sin(positions, 16, 0.5)
    assert torch.equal(rotate_by(x, angles), rotate(x, positions, 0.5))


def test_a_pair_turns_once_in_its_period():
    angles = time_cos_sin(torch.tensor([NOW, NOW + 600, NOW + 300]), 3)
    torch.testing.assert_close(angles[0, :, 0], angles[1, :, 0])
    torch.testing.assert_close(angles[0, :, 0], -angles[2, :, 0])
    assert not torch.allclose(angles[0, :, 1], angles[1, :, 1])


def test_bert4rec_sees_the_moment_at_its_mask():
    model, events = timed_model(backbone="bert4rec"), history(12)
    later = replace(events, asked=events.asked + 1_000_000)
    one, other = (model.queries(pack([each], model.inputs)) for each in (events, later))
    assert relative_error(one, other) > 1e-3
    unknown = events.asked_for(-1)
    assert model.queries(pack([unknown], model.inputs)).isfinite().all()


def test_unknown_times_and_moments_are_no_fault():
    model = timed_model()
    rows = History(np.arange(9)).asked_for(-1)
    assert model.queries(pack([rows], model.inputs)).isfinite().all()


def test_inputs_are_those_that_are_seen():
    assert inputs_of(ModelConfig()) == ("items",)
    assert inputs_of(ModelConfig(time_gap="on")) == ("items", "times")
    assert inputs_of(ModelConfig(request_time="on")) == ("items", "times", "asked")


class TestResolving:
    def resolved(self, log, **options) -> ModelConfig:
        config = RunConfig(ModelConfig(**options), evaluation=EvaluationConfig())
        return resolve_inputs(config, log).model

    def test_times_are_seen_where_there_are_any(self, tiny_log):
        model = self.resolved(tiny_log)
        assert (model.time_gap, model.request_time, model.clock) == ("on", "on", "off")
        assert model.content == "off"

    def test_an_order_is_no_time(self, ordered_log):
        model = self.resolved(ordered_log)
        assert (model.time_gap, model.request_time) == ("off", "off")
        for option in ("time_gap", "request_time", "clock"):
            with pytest.raises(ConfigError, match=f"model.{option} is 'on': .* has an order"):
                self.resolved(ordered_log, **{option: "on"})
        with pytest.raises(ConfigError, match=r"model.time_share is 0.25: .* has an order"):
            self.resolved(ordered_log, time_share=0.25)

    def test_they_are_decided_anew_for_every_log(self, tiny_log, ordered_log):
        recommender = BlossomRec(**SMALL | {"time_gap": "auto", "request_time": "auto"})
        recommender.fit(tiny_log, progress=False)
        assert recommender.config.model.time_gap == "on"
        recommender.fit(ordered_log, progress=False)
        assert recommender.config.model.time_gap == "off"

    def test_content_needs_a_table(self, tiny_log):
        with pytest.raises(ConfigError, match=r"model.content is 'on': .* has no table of items"):
            self.resolved(tiny_log, content="on")

    def test_a_masked_event_has_a_time_only_with_the_moment_asked_for(self, tiny_log):
        model = self.resolved(tiny_log, backbone="bert4rec", request_time="off")
        assert model.time_gap == "off"
        with pytest.raises(ConfigError, match=r"model.request_time is .off.: bert4rec that sees"):
            self.resolved(tiny_log, backbone="bert4rec", request_time="off", time_gap="on")


def test_shares_of_rotation_fit_a_head():
    with pytest.raises(ConfigError, match=r"time_share is 0.75: with rotary_share, 0.5"):
        small_model(time_share=0.75)
