"""Training with the user's own items mixed in: where it is on, what it changes, what it wins."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from small_training import small_config

from blossomrec.config import EvaluationConfig, with_options
from blossomrec.data.batch import Batch, pack
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.errors import ConfigError
from blossomrec.evaluation import RankingOptions, evaluate
from blossomrec.models import build_model
from blossomrec.models.inputs import repeated_share, resolve_inputs
from blossomrec.recommender import BlossomRec
from blossomrec.training.objective import Objective, device_steps
from blossomrec.training.setup import build_parts, open_fabric
from own_items_oracle import log_mixture
from small_options import SMALL

DAY = 86_400


def log_of(histories, folder=None, gap=DAY):
    """A log of histories of item numbers, or of pairs of item and second."""
    events = [
        (user, *(event if isinstance(event, tuple) else (event, 1_600_000_000 + gap * n)))
        for user, history in enumerate(histories)
        for n, event in enumerate(history)
    ]
    columns = ["user_id", "item_id", "timestamp"]
    return EventLog.prepare(pl.DataFrame(events, schema=columns, orient="row"), folder)


def habits(users=60, items=40, days=50, seed=0):
    """Every user buys a few items of their own, each after as many days as the item lasts."""
    rng = np.random.default_rng(seed)
    lasts = rng.integers(2, 15, items)
    found = []
    for _ in range(users):
        own = rng.choice(items, 6, replace=False)
        start = rng.integers(0, 15, 6)
        bought = [
            (int(item), 1_600_000_000 + DAY * int(day) + int(rng.integers(3_600)))
            for item, first in zip(own, start, strict=True)
            for day in range(first, days, lasts[item])
        ]
        found.append(sorted(bought, key=lambda event: event[1]))
    return found


def distinct(users=20, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.permutation(30)[:12].tolist() for _ in range(users)]


def resolved(log, **options):
    return resolve_inputs(with_options(small_config(repeats="auto"), options), log).model.repeats


def test_auto_is_on_where_enough_training_events_repeat():
    # The items that come again are held out, but for one of 20 users or for two of 19.
    rare = [*distinct(19), [1, 2, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    often = [[1, 2, 1, 3, 1, 2, 1, 3, 4, 5], *distinct(3)]
    held_out = [[*history, history[0]] for history in distinct()]
    assert resolved(log_of(often)) == "on"
    assert [resolved(log_of(each)) for each in (rare, held_out, distinct())] == ["off"] * 3
    log = log_of(often)
    for options in ({"backbone": "bert4rec"}, {"loss": "bpr"}, {"filter_seen": "yes"}):
        assert resolved(log, **options) == "off"
    assert resolved(log, repeats="off") == "off" and resolved(log_of(rare), repeats="on") == "on"


def test_share_of_repeated_events_is_that_of_a_loop():
    log = log_of(habits())
    ends = make_split(log, EvaluationConfig()).train_end
    known = again = 0
    for user in range(log.num_users):
        items = log.history(user).items[: ends[user]].tolist()
        again += sum(item in items[:n] for n, item in enumerate(items))
        known += len(items)
    assert repeated_share(log, ends) == pytest.approx(again / known)


@pytest.mark.parametrize(
    "options, named",
    [
        (
            {"loss": "sampled_softmax"},
            r"model\.repeats is 'on', .* training\.loss 'sampled_softmax'",
        ),
        ({"backbone": "bert4rec"}, r"model\.repeats is 'on', .* model\.backbone 'bert4rec'"),
    ],
)
def test_what_it_does_not_go_with_is_refused(options, named):
    log = log_of(habits(10))
    with pytest.raises(ConfigError, match=named):
        resolved(log, repeats="on", **options)
    config = small_config(repeats="on", **options)
    model = build_model(config.model, log.num_items)
    split = make_split(log, config.evaluation)
    with pytest.raises(ConfigError, match=named):
        build_parts(model, log, split.train_end, config, open_fabric(config.training))


def random_model(log, **options):
    """With own items mixed in by random numbers, in evaluation mode."""
    config = resolve_inputs(
        with_options(
            small_config(repeats="on", time_gap="auto", request_time="auto", dropout=0.0), options
        ),
        log,
    )
    torch.manual_seed(0)
    model = build_model(config.model, log.num_items, log.tables)
    with torch.no_grad():
        model.item_embeddings.weight.mul_(10)
        for parameter in model.own_history.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval(), config


@pytest.mark.parametrize("backbone", ["sasrec", "gru4rec"])
def test_ranks_at_several_targets_are_those_of_the_mixture(backbone):
    log = log_of(habits(12))
    evaluation = EvaluationConfig(last_events=5)
    model, _ = random_model(log, backbone=backbone)
    cases = make_split(log, evaluation).test
    found = evaluate(model, log, cases, RankingOptions(filter_seen=False), tokens_per_batch=100)
    own, catalogue = model.own_history.double(), model.output_weight().detach().double()
    ranks = []
    for user, end in zip(cases.users, cases.history_end, strict=True):
        history = log.history(int(user))
        part = slice(max(0, end - model.max_len), end)
        asked = history[part].asked_for(int(history.times[end]))
        batch = pack([asked], model.inputs)
        with torch.no_grad():
            hidden = model.encode(batch).hidden.double()
            gap = [int(a - b) for a, b in zip(batch.asked, batch.times, strict=True)]
            given = [each.tolist() for each in (batch.items, batch.times)]
            last = len(hidden) - 1
            mixed = log_mixture(own, hidden, catalogue, *given, gap, first=last)[0]
        target = history.items[end]
        ranks.append(int((mixed >= mixed[target]).sum()) - 1)
    own.float()
    assert len(set(ranks)) > 5
    assert found.ranks.tolist() == ranks


def test_losses_do_not_know_what_comes_later():
    log = log_of(habits(8))
    model, config = random_model(log)
    batch = next(iter(build_batches(model, log, config).epoch(0)))
    cut = len(batch.items) // 2
    changed = {
        name: torch.cat((each[:cut], each[cut:].flip(0)))
        for name, each in batch.events().items()
        if name in ("items", "targets")
    }
    found = [row_losses(model, each) for each in (batch, replace(batch, **changed))]
    # A target may be another where the history is cut, an event is not.
    assert torch.equal(found[0][: cut - 1], found[1][: cut - 1])
    assert not torch.equal(found[0][cut:], found[1][cut:])


def test_a_backbone_that_does_not_say_what_was_asked_is_refused():
    log = log_of(habits(8))
    model, config = random_model(log)
    batch = next(iter(build_batches(model, log, config).epoch(0)))
    encoded = replace(model.encode(batch), asked=None)
    with pytest.raises(ConfigError, match=r"encode of backbone sasrec must return what was asked"):
        model.mixed_losses(torch.zeros(len(batch.items)), encoded, batch, None)


def test_packed_histories_have_the_losses_that_each_has_alone():
    log = log_of(habits(8))
    model, config = random_model(log)
    batch = next(iter(build_batches(model, log, config).epoch(0)))
    edges = batch.cu_seqlens.tolist()
    alone = [
        row_losses(model, alone_in(batch, start, end)) for start, end in itertools.pairwise(edges)
    ]
    assert len(alone) > 3
    torch.testing.assert_close(torch.cat(alone), row_losses(model, batch), rtol=1e-4, atol=1e-5)


def test_weights_of_targets_count_in_the_mean():
    log = log_of(habits(8))
    model, config = random_model(log)
    batch = next(iter(build_batches(model, log, config).epoch(0)))
    weights = torch.linspace(0, 2, len(batch.items))
    batch = replace(batch, target_weights=weights)
    parts = build_parts(
        model,
        log,
        make_split(log, config.evaluation).train_end,
        config,
        open_fabric(config.training),
    )
    objective = Objective(model, parts.loss, selector_weight=0.0).eval()
    losses = row_losses(model, batch)
    step = next(device_steps(iter([batch]), torch.device("cpu")))
    expected = (losses * weights).sum() / weights.sum()
    assert objective(step).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def build_batches(model, log, config):
    split = make_split(log, config.evaluation)
    config = with_options(config, {"tokens_per_batch": 150})
    return model.training_batches(log, split.train_end, config)


def alone_in(batch: Batch, start: int, end: int) -> Batch:
    edges = torch.tensor([0, end - start], dtype=torch.int32)
    return batch.take(torch.arange(start, end), edges, end - start)


@torch.no_grad()
def row_losses(model, batch):
    encoded = model.encode(batch)
    logits = encoded.hidden @ model.output_weight().T
    losses = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    return model.mixed_losses(losses, encoded, batch, None)


def test_habits_are_learned_and_kept(tmp_path):
    log = log_of(habits(120), tmp_path / "log")
    options = SMALL | {"epochs": 4, "time_gap": "on", "request_time": "on", "learning_rate": 1e-2}
    found = {}
    for repeats in ("auto", "off"):
        recommender = BlossomRec(**options | {"repeats": repeats, "last_events": 3})
        recommender.fit(log, tmp_path / repeats, progress=False)
        found[repeats] = recommender.evaluate().metrics["ndcg@10"]
        assert (recommender.model.own_history is not None) == (repeats == "auto")
    assert found["auto"] > 1.15 * found["off"]
    again = BlossomRec.from_pretrained(tmp_path / "auto", log, device="cpu")
    assert again.config.model.repeats == "on"
    assert again.evaluate().metrics["ndcg@10"] == found["auto"]
    rows = again.recommend([0], k=log.num_items)
    few = again.recommend([0], k=3, items=rows["item_id"][:5].to_list())
    assert few["item_id"].to_list() == rows["item_id"][:3].to_list()
    assert few["score"].to_list() == pytest.approx(rows["score"][:3].to_list(), abs=1e-5)
