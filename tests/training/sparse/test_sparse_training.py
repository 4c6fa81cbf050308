"""Trainings in which a step touches some rows of the item table, beside those that touch all."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from small_training import logged, outcome, small_config, small_train

from blossomrec.config import check
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError
from blossomrec.losses import LOSSES, SampledLoss
from blossomrec.models import build_model
from blossomrec.run.description import read_run_config
from blossomrec.run.weights import read_weights
from blossomrec.training.checkpoint import Checkpoints
from blossomrec.training.objective import device_steps
from blossomrec.training.setup import build_parts, open_fabric
from blossomrec.training.state import optimizer_state
from blossomrec.training.update import WARM_UP, GraphUpdate, build_update
from waiting import Waits

SAMPLED = {"loss": "sampled_softmax", "uniform_share": 0.5}
LAZY = SAMPLED | {"table_optimizer": "lazy_adamw"}
ROWWISE = SAMPLED | {"table_optimizer": "rowwise_adagrad", "table_learning_rate": 0.1}
TABLE = "item_embeddings.weight"
WEIGHTS = "model.safetensors"


def parts_of(log, split, **options):
    config = small_config(**{"dropout": 0.0} | options)
    torch.manual_seed(0)
    model = build_model(config.model, log.num_items, log.tables)
    return build_parts(model, log, split.train_end, config, open_fabric(config.training))


def steps_of(parts, epoch=0):
    parts.objective.train()
    return list(device_steps(parts.batches.epoch(epoch), parts.fabric.device, parts.shape))


@pytest.mark.parametrize("graph", ["off", "on"])
@pytest.mark.parametrize("loss", ["sampled_softmax", "gbce", "bpr"])
@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec", "gru4rec"])
def test_the_gradient_of_the_rows_is_that_of_the_table(tiny_log, split, backbone, loss, graph):
    if (backbone, graph) == ("gru4rec", "on"):
        pytest.skip("takes no batches of one shape")
    options = {"backbone": backbone, "loss": loss, "graph": graph, "negatives": 9}
    same_gradients(tiny_log, split, **options)


def test_so_it_is_where_targets_count_differently(tiny_events, split):
    weighted = tiny_events.with_columns(w=pl.int_range(pl.len()) % 4)
    log = EventLog.prepare(weighted, weight="w")
    same_gradients(log, split, loss="sampled_softmax", negatives=9)


def same_gradients(log, split, **options):
    found = []
    for name in ("adamw", "lazy_adamw"):
        parts = parts_of(log, split, table_optimizer=name, **options)
        losses = parts.objective(steps_of(parts)[0])
        parts.fabric.backward(losses.total)
        gradient = parts.model.item_embeddings.weight.grad
        if name == "lazy_adamw":
            assert gradient is None
            gradient = torch.zeros_like(parts.model.item_embeddings.weight)
            gradient.index_add_(0, parts.table._rows, parts.table.vectors.grad)
        others = [one.grad for n, one in parts.model.named_parameters() if n != TABLE]
        found.append([losses.total.detach(), gradient, *(x for x in others if x is not None)])
    assert (found[0][1] != 0).any(1).sum() > 20
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_the_same_step_gives_the_same_bits(tiny_log, split):
    found = []
    for _ in range(2):
        parts = parts_of(tiny_log, split, **LAZY)
        update = build_update(parts, 1.0)
        for step in steps_of(parts):
            update(step, 0.01)
        found.append(parts.model.item_embeddings.weight.detach().clone())
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"backbone": "bert4rec", "schedule": "cosine"},
        {"loss": "gbce", "clip_norm": 0.1},
        {"loss": "bpr", "clip_norm": 0.0, "norm": "post"},
        {"graph": "on", "warmup_steps": 0},
        {"backbone": "gru4rec"},
    ],
    ids=str,
)
def test_lazy_adamw_trains_as_adamw_does(tiny_log, tmp_path, options):
    """Weights, their average, and what was logged of losses and metrics."""
    given = SAMPLED | {"dropout": 0.0, "ema_decay": 0.9, "negatives": 9} | options
    for name in ("adamw", "lazy_adamw"):
        small_train(tiny_log, small_config(table_optimizer=name, **given), tmp_path / name)
    dense, lazy = (logged(tmp_path / name) for name in ("adamw", "lazy_adamw"))
    for one, other in zip(dense, lazy, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert other["validation"]["ndcg@10"] == pytest.approx(
            one["validation"]["ndcg@10"], abs=0.02
        )
    ends = [
        Checkpoints(tmp_path / name / "checkpoints").newest().tensors
        for name in ("adamw", "lazy_adamw")
    ]
    before = build_model(small_config(**given).model, tiny_log.num_items)
    for part in ("model", "average"):
        one, other = (end[f"{part}.{TABLE}"] for end in ends)
        torch.testing.assert_close(other, one, rtol=0, atol=2e-3)
        # A step moves by up to 0.005.
        assert (one - before.item_embeddings.weight).abs().max() > 0.03
    for name in ("exp_avg", "exp_avg_sq"):
        one, other = (end[f"optimizer.{TABLE}:{name}"] for end in ends)
        assert (one - other).norm() < 1e-2 * one.norm()


RANKING = {"attention": "full", "dropout": 0.1, "ema_decay": 0.9, "negatives": 64}
RANKING_OF = {
    "sasrec": {"epochs": 12, "learning_rate": 1e-2},
    # An epoch predicts the masked events alone.
    "bert4rec": {
        **{"epochs": 125, "validate_every": 25, "mask_probability": 0.3, "tokens_per_batch": 320},
        **{"learning_rate": 2e-2, "hidden_size": 32},
    },
}


@pytest.mark.parametrize(
    "backbone, tables",
    [("sasrec", (LAZY, ROWWISE)), ("bert4rec", (LAZY,))],
    ids=["sasrec", "bert4rec"],
)
def test_it_ranks_no_worse_than_the_sampled_loss_does(followed_log, tmp_path, backbone, tables):
    found = []
    for number, options in enumerate(({"loss": "sampled_softmax"}, *tables)):
        config = small_config(backbone=backbone, **RANKING | RANKING_OF[backbone] | options)
        result = small_train(followed_log, config, tmp_path / str(number))
        found.append(result.validation["ndcg@10"])
    # By chance it would be less than 0.05.
    assert found[0] > 0.25
    assert min(found[1:]) > found[0] - 0.05


@pytest.fixture(scope="module")
def followed_log():
    """A log in which each item is followed by the next one of a circle, mostly."""
    rng = np.random.default_rng(0)
    users, length, items = 60, 24, 100
    walks = (rng.integers(items, size=(users, 1)) + np.arange(length)) % items
    walks = np.where(rng.random(walks.shape) < 0.1, rng.integers(items, size=walks.shape), walks)
    return EventLog.prepare(
        pl.DataFrame(
            {
                "user_id": np.repeat(np.arange(users), length),
                "item_id": walks.ravel(),
                "timestamp": np.arange(users * length),
            }
        )
    )


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"loss": "cross_entropy"}, "training.loss 'cross_entropy' needs all items"),
        ({"loss": "own"}, "training.loss 'own' needs all items"),
    ],
)
def test_what_needs_all_items_is_refused(tiny_log, split, monkeypatch, options, reason):
    monkeypatch.setitem(LOSSES._registered, "own", SampledLoss)
    with pytest.raises(ConfigError, match=f"table_optimizer is 'lazy_adamw', but {reason}"):
        parts_of(tiny_log, split, **LAZY | options)


def test_content_needs_all_items(tiny_events, split):
    items = tiny_events.select("item_id").unique().sort("item_id")
    log = EventLog.prepare(tiny_events, items=items.with_columns(price=pl.col("item_id") % 7))
    with pytest.raises(ConfigError, match=r"model\.content is 'on', which makes the vectors"):
        parts_of(log, split, **LAZY, content="on")


def test_a_learning_rate_of_a_table_that_has_none_is_refused():
    config = small_config(table_learning_rate=0.5)
    with pytest.raises(ConfigError, match=r"table_learning_rate is 0\.5, but table_optimizer is"):
        check(config.training)
    check(dataclasses.replace(config.training, table_optimizer="rowwise_adagrad"))


def test_the_table_has_a_learning_rate_of_its_own(tiny_log, split):
    moved = {}
    for rate in (0.0, 5e-3, 5e-2):
        parts = parts_of(tiny_log, split, **LAZY | {"table_learning_rate": rate})
        before = parts.model.item_embeddings.weight.detach().clone()
        # The small training has a learning rate of 0.005.
        build_update(parts, 1.0)(steps_of(parts)[0], 2.5e-3)
        moved[rate] = (parts.model.item_embeddings.weight - before).abs().max().item()
    assert moved[0.0] == moved[5e-3] == pytest.approx(2.5e-3, rel=1e-3)
    assert moved[5e-2] == pytest.approx(2.5e-2, rel=1e-3)


@pytest.mark.parametrize("options", [LAZY, ROWWISE | {"backbone": "bert4rec"}], ids=str)
def test_nothing_of_the_table_waits_for_the_device(tiny_log, split, monkeypatch, options):
    parts = parts_of(tiny_log, split, **options, graph="on", attention="full", ema_decay=0.9)
    parts.table.start_average(0.9)
    update = build_update(parts, 1.0)
    assert isinstance(update, GraphUpdate)
    # The optimizer of the processor looks at its steps, that of a GPU does not.
    monkeypatch.setattr(parts.optimizer, "step", lambda *arguments, **named: None)
    # Dense attention on a processor sorts histories by length.
    encode = parts.model.encode

    def unwatched(*arguments, **named):
        with torch.utils._python_dispatch._disable_current_modes():
            return encode(*arguments, **named)

    monkeypatch.setattr(parts.model, "encode", unwatched)
    step = steps_of(parts)[0]
    with Waits() as waits:
        update(step, 0.01)
    assert waits.found == []


def test_a_run_that_is_brought_up_to_date_keeps_the_moments(tiny_log, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for run, options in ((first, LAZY), (second, SAMPLED)):
        small_train(tiny_log, small_config(epochs=1, events="all", **options), run)
    moments = [optimizer_state(Checkpoints(run / "checkpoints").newest().tensors)[TABLE]
               for run in (first, second)]  # fmt: skip
    assert {"exp_avg", "exp_avg_sq", "step"} <= moments[0].keys() & moments[1].keys()
    for table in (LAZY, SAMPLED, ROWWISE):
        for number, ancestor in enumerate((first, second)):
            run = tmp_path / f"{table.get('table_optimizer')}-{number}"
            config = small_config(epochs=1, events="all", learning_rate=0.0, **table)
            config = dataclasses.replace(
                config, training=dataclasses.replace(config.training, table_learning_rate=0.0)
            )
            small_train(tiny_log, config, run, ancestor=ancestor)
            assert read_run_config(run).ancestor["moments"]
            now = optimizer_state(Checkpoints(run / "checkpoints").newest().tensors)[TABLE]
            assert torch.equal(
                read_weights(run / WEIGHTS)[TABLE], read_weights(ancestor / WEIGHTS)[TABLE]
            )
            # The steps of the ancestor count.
            assert now["step"] == 2 * moments[number]["step"]


def test_row_wise_sums_are_taken_over(tiny_log, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    small_train(tiny_log, small_config(epochs=1, **ROWWISE), first)
    config = small_config(epochs=1, events="all", **ROWWISE)
    small_train(tiny_log, config, second, ancestor=first)
    before, after = (
        optimizer_state(Checkpoints(run / "checkpoints").newest().tensors)[TABLE]["square_sum"]
        for run in (first, second)
    )
    assert before.max() > 0
    assert (after >= before).all() and (after > before).any()
    # AdamW has no use for them, but for the rest of the moments.
    third = tmp_path / "third"
    small_train(tiny_log, small_config(epochs=1, events="all", **SAMPLED), third, ancestor=first)
    now = optimizer_state(Checkpoints(third / "checkpoints").newest().tensors)
    assert now[TABLE]["step"] < now["layers.0.inner.weight"]["step"]


def test_more_epochs_go_on_from_the_last(tiny_log, tmp_path):
    options = LAZY | {"warmup_steps": 2, "ema_decay": 0.9, "validate_every": 3}
    for epochs, run in ((4, "whole"), (2, "parts"), (4, "parts")):
        small_train(tiny_log, small_config(epochs=epochs, **options), tmp_path / run)
    # The last epoch of the first part was looked at in addition.
    whole, parts = (tmp_path / run for run in ("whole", "parts"))
    assert outcome(whole)[1] == outcome(parts)[1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [LAZY, ROWWISE, {"loss": "sampled_softmax"}], ids=str)
@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec"])
def test_a_replayed_step_is_the_step(tiny_log, split, options, backbone):
    found = []
    for warm_up in (WARM_UP, 1 << 30):
        sizes = {"max_len": 60, "hidden_size": 128, "heads": 8, "kv_heads": 2}
        given = {"graph": "on", "device": "cuda", "attention": "full", "backbone": backbone}
        parts = parts_of(tiny_log, split, **sizes, **given, **options)
        if parts.table is not None:
            parts.table.start_average(0.9)
        update = build_update(parts, 1.0)
        update.warm_up = warm_up
        values = [
            torch.stack(tuple(update(step, 0.01 / (1 + number)).values()))
            for epoch in range(3)
            for number, step in enumerate(steps_of(parts, epoch))
        ]
        if parts.table is not None:
            parts.table.catch_up()
        weights = [one.detach().clone() for one in parts.model.parameters()]
        found.append([torch.stack(values), *weights])
    assert len(found[0][0]) > 2 * WARM_UP
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
