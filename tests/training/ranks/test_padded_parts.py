"""Parts of batches in the shape of a graph: what is in them, and that no step of them waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np
import pytest
import torch
from small_training import small_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blossomrec.data.batches import ClozeBatches, TrainingBatches
from blossomrec.models import build_model
from blossomrec.ranks import Ranks
from blossomrec.training import shape as shapes
from blossomrec.training.ranks.update import ShardedUpdate
from blossomrec.training.setup import build_parts, open_fabric
from blossomrec.training.shape import Shape, part_sizes
from blossomrec.training.sharded.division import Division, _spread
from blossomrec.training.update import GraphUpdate, build_update
from waiting import Waits, take_the_way_of_a_gpu

SIZE = 3


def batches_of(log, split, kind=TrainingBatches):
    options = {"mask_probability": 0.2} if kind is ClozeBatches else {}
    sizes = {"max_len": 20, "tokens_per_batch": 300, "seed": 0}
    return kind(log, split.train_end, **sizes, **options)


@dataclass(frozen=True, eq=False)
class Agreeing(Ranks):
    """One of several ranks that are given the same numbers."""

    def agree(self, *numbers: int) -> tuple[int, ...]:
        return numbers


def epoch_of(batches, num_rows, shapes, *, with_targets, epoch=0, looked_at=8):
    """The steps of each rank in an epoch, on the host."""
    divisions = [
        Division(Agreeing(rank, len(shapes)), num_rows, 7, with_targets=with_targets, shape=shape)
        for rank, shape in enumerate(shapes)
    ]
    if any(shapes):
        firsts = (islice(batches.epoch(0, division=each), looked_at) for each in divisions)
        looked = list(chain(*firsts))
        for each in divisions:
            each.make_room(looked)
    parts = [list(batches.epoch(epoch, division=each)) for each in divisions]
    for of_step in zip(*parts, strict=True):
        both = list(zip(divisions, of_step, strict=True))
        told = torch.cat([part.told for part in of_step])
        if not all(part.step.padded for part in of_step):
            told = torch.cat([each.whole(part) for each, part in both])
        yield [each.share(part, told) for each, part in both]


@pytest.mark.parametrize("with_targets", [True, False])
@pytest.mark.parametrize("kind", [TrainingBatches, ClozeBatches])
def test_a_padded_part_has_what_the_part_has(tiny_log, split, kind, with_targets):
    batches, num_rows = batches_of(tiny_log, split, kind), tiny_log.num_items + 1
    shape = Shape.of(batches, SIZE)
    assert shape.tokens < Shape.of(batches).tokens / 2
    options = {"with_targets": with_targets, "epoch": 0}
    plain = epoch_of(batches, num_rows, [None] * SIZE, **options)
    padded = epoch_of(batches, num_rows, [shape] * SIZE, **options)
    met = 0
    for before, after in zip(plain, padded, strict=True):
        for rank, (one, other) in enumerate(zip(before, after, strict=True)):
            events = len(one.batch.items)
            assert other.padded and not one.padded
            assert other.counts is None and other.longest == shape.targets
            assert len(other.batch.items) == len(other.targets) == shape.tokens
            assert other.batch.num_histories == shape.histories
            # From every rank as many rows, which rise, and each of which is one that it has.
            assert len(other.wanted) == len(other.sent) == SIZE * (len(other.sent) // SIZE)
            assert (other.wanted.diff() >= 0).all()
            arrived = [
                peer.sent.view(SIZE, -1)[rank] + Ranks(owner, SIZE).rows(num_rows).start
                for owner, peer in enumerate(after)
            ]
            assert torch.equal(torch.cat(arrived), other.wanted)
            mine, theirs = one.wanted[one.batch.items], other.wanted[other.batch.items]
            assert torch.equal(theirs[:events], mine)
            assert torch.equal(other.targets[:events], one.targets)
            assert (other.targets[events:] == -1).all()
            there = other.targets >= 0
            assert torch.equal(other.batch.targets >= 0, there)
            named = other.batch.targets[there]
            assert torch.equal(other.wanted[named] if with_targets else named, other.targets[there])
            for name in ("event_share", "counted", "importance", "seed", "events", "num_targets"):
                assert getattr(one, name) == getattr(other, name)
            # Each row is found where it stands first.
            places = torch.searchsorted(other.wanted, theirs)
            assert torch.equal(places[:events], other.batch.items[:events])
            met += events
    assert met >= batches.num_events


def test_where_one_part_does_not_fit_none_is_padded(tiny_log, split):
    batches, num_rows = batches_of(tiny_log, split), tiny_log.num_items
    shape, found = Shape.of(batches, SIZE), set[bool]()
    # One of the ranks has room for fewer histories than it gets in some batches.
    lengths = [batches.lengths(0, step) for step in range(batches.steps(0))]
    fewest = int(np.median(part_sizes(lengths, SIZE)[1])) + 1
    shapes = [shape, shape._replace(histories=fewest), shape]
    for steps in epoch_of(batches, num_rows, shapes, with_targets=True):
        padded = {step.padded for step in steps}
        assert len(padded) == 1
        assert padded == {True} or all(step.counts is not None for step in steps)
        found |= padded
    assert found == {True, False}


def test_where_a_rank_has_no_rows_no_part_is_padded(tiny_log, split):
    batches, rows = batches_of(tiny_log, split), tiny_log.num_items
    size = next(size for size in range(2, rows) if not Ranks(size - 1, size).rows(rows))
    shapes = [Shape.of(batches, size)] * size
    for steps in epoch_of(batches, rows, shapes, with_targets=True):
        for rank, step in enumerate(steps):
            assert not step.padded
            assert (step.sent >= 0).all() and (rank < size - 1 or not len(step.sent))


def test_there_is_room_for_the_parts_of_other_epochs(tiny_log, split):
    batches = batches_of(tiny_log, split)
    shapes = [Shape.of(batches, SIZE)] * SIZE
    steps = [
        step.padded
        for epoch in (1, 2)
        for (step, *_) in epoch_of(
            batches, tiny_log.num_items, shapes, with_targets=True, epoch=epoch
        )
    ]
    assert sum(steps) > len(steps) / 2


def test_what_fills_up_is_no_single_row():
    rows, others = np.array([3, 5, 8]), range(2, 12)
    for room in (3, 4, 8, 30):
        spread = _spread(rows, room, others)
        assert len(spread) == room and (np.diff(spread) >= 0).all()
        assert np.unique(spread, return_counts=True)[1].max() == -(-room // 3)
    assert _spread(rows[:0], 4, others).tolist() == [2, 3, 4, 5]
    assert _spread(rows[:0], 20, others).tolist() == np.repeat(others, 2).tolist()


@dataclass(frozen=True, eq=False)
class Echo(Ranks):
    """One of two ranks, to whom the other one tells what it tells itself."""

    size: int = 2

    def agree(self, *numbers: int) -> tuple[int, ...]:
        return numbers

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat([x, x])

    def gather_later(self, x: Tensor) -> Callable[[], Tensor]:
        return lambda: self.gather(x)

    def sum_(self, x: Tensor) -> Tensor:
        return x

    def sum_to_owners(self, x: Tensor) -> Tensor:
        return x[: len(x) // 2].clone()

    def exchange(self, x, sent=None, received=None, out=None):
        assert sent is None and received is None
        return x.clone() if out is None else out.copy_(x)


@pytest.mark.parametrize("fits", [True, False])
def test_all_rows_are_told_where_they_have_no_room(tiny_log, split, fits):
    batches, ranks = batches_of(tiny_log, split), Echo()
    options = {"with_targets": True, "shape": Shape.of(batches, 2)}
    division = Division(ranks, tiny_log.num_items, 7, **options)
    parts = list(batches.epoch(0, division=division))
    # By parts that need fewer rows than all others, or by these.
    fewest = replace(parts[0], wanted=parts[0].wanted[:1])
    division.make_room(parts if fits else [fewest])
    plain = Division(ranks, tiny_log.num_items, 7, with_targets=True)
    steps = list(division.steps(batches.epoch(0, division=division)))
    for step, other in zip(steps, plain.steps(batches.epoch(0, division=plain)), strict=True):
        assert step.padded == fits
        if not fits:
            assert step.counts == other.counts and torch.equal(step.sent, other.sent)
            assert torch.equal(step.wanted, other.wanted)
            assert torch.equal(step.batch.items, other.batch.items)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"repeats": "on"},
        {"backbone": "bert4rec"},
        {"loss": "sampled_softmax", "table_optimizer": "lazy_adamw"},
        {"loss": "gbce", "backbone": "bert4rec"},
    ],
    ids=lambda form: " ".join(form.values()) or "plain",
)
def test_nothing_in_a_step_of_ranks_waits_for_the_device(tiny_log, split, monkeypatch, form):
    sizes = take_the_way_of_a_gpu(monkeypatch)
    config = small_config(graph="on", dropout=0.0, tokens_per_batch=68, **form, **sizes)
    torch.manual_seed(0)
    ranks = Echo()
    model = build_model(config.model, tiny_log.num_items, ranks=ranks)
    given = (model, tiny_log, split.train_end, config, open_fabric(config.training))
    parts = build_parts(*given, ranks=ranks)
    parts.objective.train()
    update = build_update(parts, 1.0, ShardedUpdate)
    assert isinstance(update, GraphUpdate)
    first, second, *_ = parts.division.steps(parts.batches.epoch(0, division=parts.division))
    assert first.padded and second.padded
    # The optimizer of the processor looks at its steps, that of a GPU does not.
    monkeypatch.setattr(parts.optimizer, "step", lambda *arguments, **named: None)
    # In the first step ranks ask each other which gradients there are.
    update(first, 0.01)
    with Waits() as waits:
        values = update(second, 0.01)
    assert waits.found == []
    assert all(np.isfinite(float(each)) for each in values.values())


class Sorts(TorchDispatchMode):
    """How many numbers were sorted each time."""

    def __init__(self):
        super().__init__()
        self.found = list[int]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name == "aten::sort":
            self.found.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def test_rows_are_sorted_once_to_be_found_and_once_to_be_summed(tiny_log, split, monkeypatch):
    sizes = take_the_way_of_a_gpu(monkeypatch)
    loss = {"loss": "sampled_softmax", "table_optimizer": "lazy_adamw", "negatives": 16}
    config = small_config(graph="on", dropout=0.0, tokens_per_batch=68, **loss, **sizes)
    ranks, told = Echo(), list[tuple[int, ...]]()
    monkeypatch.setattr(Echo, "sum_", lambda self, x: told.append(x.shape) or x)
    model = build_model(config.model, tiny_log.num_items, ranks=ranks)
    given = (model, tiny_log, split.train_end, config, open_fabric(config.training))
    parts = build_parts(*given, ranks=ranks)
    update = build_update(parts, 1.0, ShardedUpdate)
    step = next(parts.division.steps(parts.batches.epoch(0, division=parts.division)))
    assert step.padded
    told.clear()
    with Sorts() as sorts:
        update(step, 0.01)
    turn = len(parts.table._in_turn)
    events = len(step.targets)
    assert sorts.found == [len(step.sent) + 16 + turn, 2 * events + 16]
    # Vectors of the sample, their gradients, and those of the encoder with all scalars.
    size = config.model.hidden_size
    assert told[:2] == [(16, size)] * 2 and len(told) == 3


def test_steps_of_ranks_are_graphs_where_those_of_one_are(tiny_log, split, monkeypatch):
    config, batches = small_config(graph="auto"), batches_of(tiny_log, split)
    cuda, found = torch.device("cuda"), list[bool]()
    for reason in ("", "it waits"):
        monkeypatch.setattr(shapes, "_obstacle", lambda *given, reason=reason: reason)
        for ranks in (Ranks(), Ranks(0, SIZE)):
            found.append(shapes.graph_shape(config, batches, cuda, ranks) is not None)
            assert shapes.graph_shape(config, batches, torch.device("cpu"), ranks) is None
    assert found == [True, True, False, False]
