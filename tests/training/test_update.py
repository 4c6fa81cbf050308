"""Steps on batches of one shape are those on batches as they come, and nothing waits in them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_training import logged, outcome, small_config, small_train

from blossomrec.data.batches import ClozeBatches, TrainingBatches
from blossomrec.errors import ConfigError
from blossomrec.losses import LOSSES, SampledLoss
from blossomrec.models import build_model
from blossomrec.training.objective import device_steps
from blossomrec.training.setup import build_parts, open_fabric
from blossomrec.training.shape import Shape
from blossomrec.training.update import WARM_UP, GraphUpdate, Update, build_update
from waiting import Waits, take_the_way_of_a_gpu

# Attentions, also with the user's own items as candidates, and with masked events as targets.
STEPS = [
    *({"attention": name} for name in ("blossom", "full", "window", "linrec", "mamba")),
    *({"attention": name, "repeats": "on"} for name in ("blossom", "full")),
    *({"attention": name, "backbone": "bert4rec"} for name in ("blossom", "full")),
]


def parts_of(log, split, **options):
    config = small_config(graph="on", dropout=0.0, **options)
    torch.manual_seed(0)
    model = build_model(config.model, log.num_items)
    return build_parts(model, log, split.train_end, config, open_fabric(config.training))


def steps_of(parts, shape, epoch=0):
    parts.objective.train()
    return list(device_steps(parts.batches.epoch(epoch), parts.fabric.device, shape))


def weights(parts):
    return [parameter.detach().clone() for parameter in parts.model.parameters()]


@pytest.mark.parametrize("form", STEPS, ids=lambda form: " ".join(form.values()))
def test_a_padded_batch_trains_as_the_batch_does(tiny_log, split, form):
    found = []
    for fixed in (True, False):
        parts = parts_of(tiny_log, split, **form)
        update = build_update(parts, 1.0)
        assert isinstance(update, GraphUpdate)
        torch.manual_seed(1)
        losses = []
        for step in steps_of(parts, parts.shape if fixed else None):
            assert step.padded == fixed
            # The number of sampled events follows from it.
            step.batch = replace(step.batch, max_length=parts.shape.max_length)
            losses.append([float(each) for each in update(step, 0.01).values()])
        found.append((torch.tensor(losses), *weights(parts)))
    assert len(found[0][0]) > 5
    assert found[0][0].shape[1] == (3 if form["attention"] == "blossom" else 2)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_padded_belongs_to_histories_without_targets(tiny_log, split):
    sizes = {"max_len": 20, "tokens_per_batch": 200, "seed": 0}
    batches = TrainingBatches(tiny_log, split.train_end, **sizes)
    shape = Shape.of(batches)
    for epoch in (0, 3):
        for batch in batches.epoch(epoch):
            given = batch.pad(*shape[:3])
            count, lengths = len(batch.items), given.cu_seqlens.diff()
            assert given.cu_seqlens[0] == 0
            assert given.cu_seqlens[-1] == shape.tokens == len(given.items)
            assert given.num_histories == shape.histories
            assert 0 <= lengths.min() <= lengths.max() <= shape.max_length == given.max_length
            assert torch.equal(given.cu_seqlens[: len(batch.cu_seqlens)], batch.cu_seqlens)
            assert torch.equal(given.items[:count], batch.items)
            assert torch.equal(given.targets[:count], batch.targets)
            assert (given.targets[count:] == -1).all()
            (step,) = device_steps(iter([batch]), torch.device("cpu"), shape)
            assert torch.equal(step.batch.items, given.items) and step.num_targets == count
            assert step.distil_rows[:count].tolist() == list(range(count))
            assert (step.distil_rows[count:] == shape.tokens).all()


def test_of_masked_events_those_with_a_target_are_predicted_from(tiny_log, split):
    sizes = {"max_len": 20, "tokens_per_batch": 200, "seed": 0, "mask_probability": 0.2}
    batches = ClozeBatches(tiny_log, split.train_end, **sizes)
    shape = Shape.of(batches)
    assert shape.targets < shape.tokens
    device, counts = torch.device("cpu"), []
    for batch in batches.epoch(2):
        (step,) = device_steps(iter([batch]), device, shape)
        (plain,) = device_steps(iter([batch]), device)
        assert len(step.rows) == shape.targets == len(step.rows.unique())
        targets = step.predicted(step.batch.targets)
        assert torch.equal(targets[targets >= 0], plain.predicted(plain.batch.targets))
        counts.append(step.num_targets)
        # A batch with more targets than there is room for is trained on as it is.
        few = shape._replace(targets=step.num_targets - 1)
        assert not next(device_steps(iter([batch]), device, few)).padded
    assert len(set(counts)) > 1


def test_there_is_room_for_every_event_as_a_target(tiny_log, split):
    sizes = {"max_len": 20, "tokens_per_batch": 200, "seed": 0, "mask_probability": 0.9}
    batches = ClozeBatches(tiny_log, split.train_end, **sizes)
    assert batches.most_targets(200, 40) == 200


def test_a_window_longer_than_the_budget_fits(tiny_log, split):
    batches = TrainingBatches(tiny_log, split.train_end, max_len=50, tokens_per_batch=30, seed=0)
    shape = Shape.of(batches)
    assert shape.tokens == shape.max_length == 50
    assert all(batch.pad(*shape[:3]) is not None for batch in batches.epoch(0))


def test_a_batch_that_does_not_fit_is_trained_on_as_it_is(tiny_log, split):
    parts = parts_of(tiny_log, split)
    small = parts.shape._replace(histories=12)
    steps = steps_of(parts, small)
    assert {step.padded for step in steps} == {True, False}
    update, seen = GraphUpdate(Update(parts, 1.0)), []
    for step in steps:
        before = weights(parts)
        seen.append(float(update(step, 0.01)["loss"]))
        assert any((a != b).any() for a, b in zip(before, weights(parts), strict=True))
    assert all(np.isfinite(seen))


def test_a_sample_of_rows_filled_up_is_that_without(tiny_log, split):
    from blossomrec.attention.selector import _draw, sample_sizes

    cu_seqlens = torch.tensor([0, 30, 30, 95, 100], dtype=torch.int32)
    first, rows = cu_seqlens[:-1].long(), torch.arange(3, 95, 2)
    drawn = []
    for given in (rows, torch.cat([rows, torch.full((54,), 100)])):
        torch.manual_seed(2)
        drawn.append(_draw(cu_seqlens, first, given, *sample_sizes(65, 4)))
    assert torch.equal(*drawn)
    assert set(drawn[0].flatten().tolist()) <= set(rows.tolist())


@pytest.mark.parametrize(
    "form",
    [{"norm": "post"}, {"norm": "pre"}, {"repeats": "on"}, {"backbone": "bert4rec"}],
    ids=str,
)
def test_nothing_in_a_step_waits_for_the_device(tiny_log, split, monkeypatch, form):
    sizes = take_the_way_of_a_gpu(monkeypatch)
    parts = parts_of(tiny_log, split, tokens_per_batch=34, **form, **sizes)
    first, second = steps_of(parts, parts.shape)[:2]
    update = build_update(parts, 1.0)
    # The optimizer of the processor looks at its steps, that of a GPU does not.
    monkeypatch.setattr(parts.optimizer, "step", lambda *arguments, **named: None)
    with Waits() as waits:
        values = update(first, 0.01)
    assert waits.found == []
    assert all(np.isfinite(float(each)) for each in values.values())
    # The same places hold another batch: nothing of the first may be left.
    seen = []
    for again in (update, build_update(parts, 1.0)):
        torch.manual_seed(3)
        seen.append([float(each) for each in again(second, 0.01).values()])
    assert seen[0] == seen[1]


def test_a_step_that_waits_is_told(tiny_log, split):
    parts = parts_of(tiny_log, split)
    with Waits() as waits:
        build_update(parts, 1.0)(steps_of(parts, parts.shape)[0], 0.01)
    assert waits.found


def test_training_on_one_shape_goes_on_as_if_never_stopped(tiny_log, tmp_path, at_step):
    class StoppedError(Exception):
        pass

    def stop():
        raise StoppedError

    config = small_config(graph="on", epochs=2, repeats="on")
    small_train(tiny_log, config, tmp_path / "whole")
    at_step(12, stop)
    with pytest.raises(StoppedError):
        small_train(tiny_log, config, tmp_path / "parts")
    small_train(tiny_log, config, tmp_path / "parts")
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")


def test_losses_are_those_of_batches_as_they_come(tiny_log, tmp_path):
    for graph in ("on", "off", "auto"):
        config = small_config(graph=graph, epochs=2, dropout=0.0, selector_weight=0.0)
        small_train(tiny_log, config, tmp_path / graph)
    on, off, auto = (logged(tmp_path / name) for name in ("on", "off", "auto"))
    assert auto == off  # on the processor
    assert [line["step"] for line in on] == [line["step"] for line in off]
    for one, other in zip(on, off, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"backbone": "gru4rec"}, "gru4rec"),
        ({"backbone": "hstu"}, "hstu"),
        ({"loss": "own"}, "loss is 'own'"),
    ],
)
def test_a_graph_that_cannot_be_is_refused_where_asked_for(
    tiny_log, split, monkeypatch, options, named
):
    monkeypatch.setitem(LOSSES._registered, "own", SampledLoss)
    with pytest.raises(ConfigError, match=f"graph is 'on', but .*{named}"):
        parts_of(tiny_log, split, **options)


def test_the_selector_is_distilled_at_masked_events_alone(tiny_log, split):
    batches = ClozeBatches(
        tiny_log, split.train_end, max_len=20, tokens_per_batch=90, seed=0, mask_probability=0.3
    )
    shape = Shape.of(batches)
    for step in device_steps(batches.epoch(0), torch.device("cpu"), shape):
        masked = (step.batch.targets >= 0).nonzero()[:, 0]
        assert torch.equal(step.distil_rows[: len(masked)], masked)
        assert (step.distil_rows[len(masked) :] == shape.tokens).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("form", STEPS, ids=lambda form: " ".join(form.values()))
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_replayed_step_is_the_step(tiny_log, split, form, dropout):
    sizes = {"block_size": 16, "compress_window": 32, "max_len": 60, "hidden_size": 128}
    found = []
    for warm_up in (WARM_UP, 1 << 30):
        config = small_config(
            graph="on",
            device="cuda",
            dropout=dropout,
            heads=8,
            kv_heads=2,
            **form,
            **sizes,
        )
        torch.manual_seed(0)
        model = build_model(config.model, tiny_log.num_items)
        parts = build_parts(model, tiny_log, split.train_end, config, open_fabric(config.training))
        parts.objective.train()
        update = build_update(parts, 1.0)
        update.warm_up = warm_up
        torch.manual_seed(1)
        values = [
            torch.stack(tuple(update(step, 0.01).values()))
            for epoch in range(3)
            for step in device_steps(parts.batches.epoch(epoch), parts.fabric.device, parts.shape)
        ]
        found.append([torch.stack(values), *weights(parts), torch.cuda.get_rng_state()])
    assert len(found[0][0]) > 2 * WARM_UP
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
