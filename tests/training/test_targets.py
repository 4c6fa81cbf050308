"""Targets that count by their kinds and weights, from the options to the numbers that come out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_training import logged, outcome, small_config, small_train

from blossomrec.data.batches import TrainingBatches
from blossomrec.data.split import make_split
from blossomrec.errors import ConfigError, DataError
from blossomrec.losses import LOSSES, SampledLoss, TrainingLoss, weighted_mean
from blossomrec.models import build_model
from blossomrec.models.sasrec import SASRec
from blossomrec.registry import BACKBONES
from blossomrec.training.objective import device_steps
from blossomrec.training.setup import build_parts, describe, open_fabric
from blossomrec.training.update import GraphUpdate, build_update
from waiting import Waits

CPU = torch.device("cpu")
BUYS = {"targets": "buy=1,click=0", "weights": "off"}
SEEN = {"event_kinds": "on", "request_kind": "on", "context": "on"}


def parts_of(log, **options):
    config = small_config(**{"dropout": 0.0, **options})
    torch.manual_seed(0)
    model = build_model(config.model, log.num_items, log.tables)
    train_end = make_split(log, config.evaluation).train_end
    return build_parts(model, log, train_end, config, open_fabric(config.training))


def values_and_weights(parts, shape):
    """What all steps of an epoch say, and the weights of the model after them."""
    parts.objective.train()
    update = build_update(parts, 1.0)
    torch.manual_seed(1)
    values = [
        torch.stack(tuple(update(step, 0.01).values()))
        for step in device_steps(parts.batches.epoch(0), parts.fabric.device, shape)
    ]
    return torch.stack(values), *(each.detach().clone() for each in parts.model.parameters())


@pytest.mark.parametrize(
    ("backbone", "graph"),
    [("sasrec", "off"), ("sasrec", "on"), ("bert4rec", "off"), ("gru4rec", "off")],
)
def test_targets_of_one_kind_are_the_loss_over_these_alone(kind_log, backbone, graph):
    parts = parts_of(kind_log, **BUYS, backbone=backbone, graph=graph)
    plain = parts_of(kind_log, backbone=backbone, graph=graph, weights="off")
    met = 0
    steps = device_steps(parts.batches.epoch(0), CPU, parts.shape)
    for step, batch in zip(steps, plain.batches.epoch(0), strict=True):
        hidden = parts.model.encode(batch).hidden
        bought = step.batch.targets[: len(batch.items)] >= 0
        logits = hidden @ parts.model.output_weight().T
        rows = bought.nonzero()[:, 0]
        assert torch.equal(step.batch.targets[rows], batch.targets[rows])
        losses = parts.objective(step)
        assert step.num_targets == len(rows) == step.importance
        met += len(rows)
        if len(rows):
            expected = F.cross_entropy(logits[rows], batch.targets[rows])
            torch.testing.assert_close(losses.loss, expected, rtol=1e-5, atol=1e-6)
        else:
            assert losses.loss == 0
    if backbone != "bert4rec":
        # By the log itself: a target is any training event but the first of its history.
        starts, kinds = np.asarray(kind_log.offsets)[:-1], np.asarray(kind_log.kinds)
        ends = starts + make_split(kind_log, small_config().evaluation).train_end
        buy = kind_log.fields.kind("buy")
        pairs = zip(starts, ends, strict=True)
        assert met == sum((kinds[start + 1 : end] == buy).sum() for start, end in pairs)


@pytest.mark.parametrize("loss", ["cross_entropy", "sampled_softmax", "gbce", "bpr"])
def test_weights_that_are_all_one_change_no_number(kind_log, monkeypatch, loss):
    found = []
    for weights in ("off", "on"):
        monkeypatch.setattr(kind_log, "weights", np.ones(kind_log.num_events, np.float32))
        parts = parts_of(kind_log, loss=loss, weights=weights)
        assert (parts.batches.importance is None) == (weights == "off")
        found.append(values_and_weights(parts, None))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0][0][0], found[1][0][0], rtol=1e-6, atol=0)


def test_weights_and_kinds_change_the_model(kind_log, tmp_path):
    found = set()
    options = {"auto": {}, "on": {"weights": "on"}, "off": {"weights": "off"}, "buys": BUYS}
    for name, given in options.items():
        small_train(kind_log, small_config(epochs=1, **given), tmp_path / name)
        found.add((tmp_path / name / "model.safetensors").read_bytes())
    assert len(found) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"targets": "buy=1,click=0.2"},
        {"backbone": "bert4rec", "targets": "buy=1"},
        {"backbone": "bert4rec", "targets": "buy=1", **SEEN},
        {"targets": "buy=1,cart=0.5", **SEEN},
        {"backbone": "gru4rec", "loss": "bpr"},
        {"graph": "on", "targets": "buy=1,cart=0.5"},
    ],
)
def test_a_weighted_training_goes_on_as_if_never_stopped(kind_log, tmp_path, at_step, options):
    class StoppedError(Exception):
        pass

    def stop():
        raise StoppedError

    config = small_config(epochs=2, **options)
    small_train(kind_log, config, tmp_path / "whole")
    at_step(14, stop)
    with pytest.raises(StoppedError):
        small_train(kind_log, config, tmp_path / "parts")
    small_train(kind_log, config, tmp_path / "parts")
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")


@pytest.mark.parametrize("attention", ["blossom", "full"])
def test_a_padded_batch_trains_as_the_batch_does(kind_log, attention):
    found = []
    for fixed in (True, False):
        parts = parts_of(
            kind_log, targets="buy=1,cart=0.5", attention=attention, graph="on", selector_weight=0.0
        )
        found.append(values_and_weights(parts, parts.shape if fixed else None))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_nothing_in_a_weighted_loss_waits_for_the_device(kind_log):
    parts = parts_of(kind_log, targets="buy=1,cart=0.5", graph="on")
    batches = parts.batches.epoch(0)
    first = next(device_steps(batches, CPU, parts.shape))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(len(first.batch.items), 16, generator=generator).requires_grad_()
    with Waits() as waits:
        loss = parts.loss(
            hidden, parts.model.output_weight(), first.batch.targets, first.batch.target_weights
        )
        loss.backward()
    assert waits.found == [] and float(loss.detach()) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_replayed_weighted_step_is_the_step(kind_log):
    sizes = {"block_size": 16, "compress_window": 32, "max_len": 60, "hidden_size": 128}
    found = []
    for captured in (True, False):
        parts = parts_of(
            kind_log,
            targets="buy=1,cart=0.5",
            graph="on",
            device="cuda",
            heads=8,
            kv_heads=2,
            **sizes,
        )
        update = build_update(parts, 1.0)
        assert isinstance(update, GraphUpdate)
        update.warm_up = update.warm_up if captured else 1 << 30
        parts.objective.train()
        torch.manual_seed(1)
        values = [
            torch.stack(tuple(update(step, 0.01).values()))
            for epoch in range(2)
            for step in device_steps(parts.batches.epoch(epoch), parts.fabric.device, parts.shape)
        ]
        found.append([torch.stack(values), *parts.model.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_the_loss_of_an_epoch_is_a_mean_by_weight(kind_log, tmp_path):
    means = []
    for tokens in (160, 100_000):
        # Nothing is learned and no history is cut, so that batches make no difference.
        config = small_config(
            targets="buy=1,click=0.2",
            tokens_per_batch=tokens,
            max_len=60,
            learning_rate=0.0,
            dropout=0.0,
            epochs=1,
            selector_weight=0.0,
        )
        small_train(kind_log, config, tmp_path / str(tokens))
        means.append(logged(tmp_path / str(tokens))[0]["loss"])
    assert means[0] == pytest.approx(means[1], rel=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"graph": "on"}, {"backbone": "bert4rec"}, {"loss": "gbce"}, {"loss": "bpr"}]
)
def test_most_batches_may_have_nothing_that_counts(kind_log, monkeypatch, tmp_path, options):
    weights = np.zeros(kind_log.num_events, np.float32)
    weights[int(kind_log.offsets[30]) + 1] = 1e-6
    monkeypatch.setattr(kind_log, "weights", weights)
    small_train(kind_log, small_config(**options), tmp_path / "run")
    losses = [line["loss"] for line in logged(tmp_path / "run")]
    assert np.isfinite(losses).all()
    # Of masked events there may be none in an epoch.
    assert "backbone" in options or min(losses) > 0


def test_a_training_in_which_nothing_counts_does_not_begin(kind_log, monkeypatch, tmp_path):
    monkeypatch.setattr(kind_log, "weights", np.zeros(kind_log.num_events, np.float32))
    with pytest.raises(DataError, match="no training event that counts as a target"):
        small_train(kind_log, small_config(), tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*"))
    small_train(kind_log, small_config(weights="off", epochs=1), tmp_path / "run")


def test_what_targets_count_is_told(kind_log, tmp_path):
    def told(**options):
        parts = parts_of(kind_log, **options)
        return describe(parts, 58, kind_log, small_config(**options), tmp_path)[4]

    assert told() == "targets: weights of the log"
    assert told(**BUYS) == "targets: buy=1,click=0"
    assert told(targets="buy=1") == "targets: buy=1 times the weights of the log"
    assert told(weights="off") == f"run: {tmp_path}"


class Plain(TrainingLoss):
    """A loss with the three arguments that every loss has."""

    def __call__(self, hidden, weight, targets):
        return F.cross_entropy(hidden @ weight.T, targets)


class PlainSampled(SampledLoss):
    """A sampled loss that takes no weights."""

    def of_sample(self, hidden, weight, targets, negatives, log_q):
        positive = (hidden * F.embedding(targets, weight)).sum(1, keepdim=True)
        return F.relu(1 - positive + hidden @ F.embedding(negatives, weight).T).mean()


class Weighted(TrainingLoss):
    """A loss that says that it takes weights."""

    weighted = True

    def __call__(self, hidden, weight, targets, row_weights=None):
        losses = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
        return weighted_mean(losses, row_weights)


@pytest.mark.parametrize("kind", [Plain, PlainSampled])
def test_a_loss_that_takes_no_weights_is_never_given_any(kind_log, monkeypatch, tmp_path, kind):
    monkeypatch.setitem(LOSSES._registered, "own", kind)
    small_train(kind_log, small_config(loss="own", weights="off", epochs=1), tmp_path / "run")
    for options, reason in (
        ({}, "training.weights is 'auto' and the log has weights"),
        (BUYS, "training.targets is 'buy=1,click=0'"),
    ):
        with pytest.raises(ConfigError, match=f"{reason}, but training.loss 'own' takes no weight"):
            small_train(kind_log, small_config(loss="own", **options), tmp_path / "refused")


def test_a_loss_of_ones_own_may_take_weights(kind_log, monkeypatch):
    monkeypatch.setitem(LOSSES._registered, "own", Weighted)
    options = {"targets": "buy=1,click=0.5", "selector_weight": 0.0}
    found = [
        values_and_weights(parts_of(kind_log, loss=loss, **options), None)[0]
        for loss in ("own", "cross_entropy")
    ]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


def test_batches_of_ones_own_that_know_no_weights_are_refused(kind_log, monkeypatch):
    class Own(SASRec):
        @classmethod
        def training_batches(cls, log, train_end, config):
            return TrainingBatches(log, train_end, max_len=20, tokens_per_batch=99, seed=0)

    monkeypatch.setitem(BACKBONES._registered, "own", Own)
    assert parts_of(kind_log, backbone="own", weights="off").batches.importance is None
    with pytest.raises(ConfigError, match=r"batches of model.backbone 'own' have no weights"):
        parts_of(kind_log, backbone="own")
