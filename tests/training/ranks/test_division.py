"""How batches are divided, and rows told apart, without a second process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_training import small_config, small_train

from blossomrec.data.batch import pack
from blossomrec.data.batches import ClozeBatches, TrainingBatches
from blossomrec.data.windows import boundaries, divided, gather_index
from blossomrec.errors import ConfigError
from blossomrec.losses.catalogue import CrossEntropy
from blossomrec.models import build_model
from blossomrec.models.sasrec import SASRec
from blossomrec.ranks import Ranks
from blossomrec.training.setup import build_parts, open_fabric
from blossomrec.training.sharded.division import Division


def shares_of(batches, size, *, with_targets=False, num_rows=20):
    """What each rank has of the first batch."""
    divisions = [
        Division(Ranks(rank, size), num_rows, 7, with_targets=with_targets) for rank in range(size)
    ]
    parts = [next(batches.epoch(0, division=each)) for each in divisions]
    told = torch.cat([part.told for part in parts])
    return [each.share(part, told) for each, part in zip(divisions, parts, strict=True)]


def small_batches(log, split, tokens=300, kind=TrainingBatches, **options):
    return kind(log, split.train_end, max_len=20, tokens_per_batch=tokens, seed=0, **options)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_are_even_and_have_every_history_once(size):
    lengths = np.random.default_rng(0).integers(1, 50, 40)
    parts = divided(lengths, size)
    assert sorted(np.concatenate(parts).tolist()) == list(range(40))
    totals = [int(lengths[part].sum()) for part in parts]
    assert max(totals) - min(totals) <= lengths.max()


@pytest.mark.parametrize("with_targets", [True, False])
def test_rows_that_are_sent_are_those_that_are_wanted(tiny_log, split, with_targets):
    batches = small_batches(tiny_log, split)
    batch, size, num_rows = next(batches.epoch(0)), 3, tiny_log.num_items
    shares = shares_of(batches, size, with_targets=with_targets, num_rows=num_rows)
    items, targets = [], []
    for rank, share in enumerate(shares):
        arrived = []
        for owner, other in enumerate(shares):
            counts = other.counts[0]
            assert counts[rank] == share.counts[1][owner]
            part = other.sent.split(counts)[rank]
            arrived.append(part + Ranks(owner, size).rows(num_rows).start)
        assert torch.cat(arrived).tolist() == share.wanted.tolist()
        items.append(share.wanted[share.batch.items])
        targets.append(share.targets)
        if with_targets:
            assert torch.equal(share.wanted[share.batch.targets], share.targets)
    pairs = sorted(zip(torch.cat(items).tolist(), torch.cat(targets).tolist(), strict=True))
    assert pairs == sorted(zip(batch.items.tolist(), batch.targets.tolist(), strict=True))
    for name in ("event_share", "target_share"):
        assert sum(getattr(share, name) for share in shares) == pytest.approx(1)
    assert len({share.seed for share in shares}) == size


class Two:
    """A batch of the histories 1, 2, 3 and 4, 5."""

    def __init__(self, batch):
        self.batch = batch

    def epoch(self, epoch, division):
        starts, lengths = np.array([0, 3]), np.array([3, 2])

        def read(chosen):
            rows = torch.from_numpy(gather_index(starts[chosen], lengths[chosen]))
            edges = torch.from_numpy(boundaries(lengths[chosen]).astype(np.int32))
            return self.batch.take(rows, edges, int(lengths[chosen].max()))

        yield division(lengths, read, (0, 3))


def test_a_rank_without_a_history_has_one_that_does_not_count():
    batch = pack([[1, 2, 3], [4, 5]])
    shares = shares_of(Two(replace(batch, targets=batch.items + 1)), 3)
    idle = shares[2]
    assert len(idle.targets) == 2 and (idle.targets == -1).all()
    assert idle.event_share == 0 and idle.importance == 5 and idle.longest == 3
    assert [float(share.target_share) for share in shares] == pytest.approx([0.6, 0.4, 0])


def test_targets_have_the_share_that_their_weights_are():
    batch = pack([[1, 2, 3], [4, 5]])
    weights = torch.tensor([0.5, 0.0, 1.0, 9.0, 4.5])
    targets = torch.tensor([2, 3, 4, -1, 6])
    for given, wanted in ((weights, [0.25, 0.75]), (weights * 0, [0, 0])):
        two = Two(replace(batch, targets=targets, target_weights=given))
        found = [float(share.target_share) for share in shares_of(two, 2)]
        assert found == pytest.approx(wanted)


class Counted:
    """An array of a log that knows which of its entries were read."""

    def __init__(self, array):
        self.array, self.read = array, list[int]()

    def __getitem__(self, index):
        self.read += np.asarray(index).tolist()
        return self.array[index]


@pytest.mark.parametrize("cloze", [False, True])
def test_a_rank_reads_the_events_of_its_part_alone(tiny_log, split, cloze):
    kind, options = TrainingBatches, {}
    if cloze:
        kind, options = ClozeBatches, {"mask_probability": 0.2}
    size, ahead, seen = 3, 0 if cloze else 1, list[set[int]]()
    batches = small_batches(tiny_log, split, kind=kind, **options)
    for rank in range(size):
        column = batches._columns["items"] = Counted(np.asarray(tiny_log.items))
        division = Division(Ranks(rank, size), tiny_log.num_items + 1, 7, with_targets=True)
        parts = list(batches.epoch(0, division=division))
        own = sum(round(part.event_share * part.events) for part in parts)
        # An item as an input and, where the next one is predicted, as a target.
        assert len(column.read) == (1 + ahead) * own
        assert own < batches.num_events / size + 20 * len(parts)
        seen.append(set(column.read))
    batches._columns["items"] = np.asarray(tiny_log.items)
    assert len(set.union(*seen)) >= batches.num_events
    # A history that was cut is met by several ranks; most are not.
    assert sum(map(len, seen)) < 1.5 * len(set.union(*seen))


@pytest.mark.parametrize("cloze", [False, True])
def test_parts_that_were_read_are_those_of_the_whole(tiny_log, split, cloze):
    kind, options = TrainingBatches, {}
    if cloze:
        kind, options = ClozeBatches, {"mask_probability": 0.2}
    batches = small_batches(tiny_log, split, kind=kind, **options)
    whole, size, rows = next(batches.epoch(0)), 3, tiny_log.num_items + 1
    found = list[tuple[int, int]]()
    for rank in range(size):
        part = next(
            batches.epoch(0, division=Division(Ranks(rank, size), rows, 7, with_targets=False))
        )
        items = part.wanted[part.step.batch.items]
        assert items.tolist() == part.batch.items.tolist()
        found += zip(items.tolist(), part.batch.targets.tolist(), strict=True)
    assert sorted(found) == sorted(zip(whole.items.tolist(), whole.targets.tolist(), strict=True))


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec"])
def test_parts_of_a_model_are_those_of_the_whole(monkeypatch, backbone):
    monkeypatch.setattr("blossomrec.models.shard.PIECE", 160)
    config = small_config(backbone=backbone).model
    models = []
    for ranks in (Ranks(), Ranks(0, 3), Ranks(1, 3), Ranks(2, 3)):
        torch.manual_seed(0)
        models.append(build_model(config, 101, ranks=ranks))
    whole, *parts = models
    table = torch.cat([each.item_embeddings.weight for each in parts])
    assert torch.equal(table, whole.item_embeddings.weight)
    assert {each.num_parameters for each in models} == {whole.num_parameters}
    for name, weight in whole.named_parameters():
        if name != "item_embeddings.weight":
            assert all(torch.equal(weight, dict(each.named_parameters())[name]) for each in parts)


def test_what_cannot_be_shared_is_refused(tiny_log, split, monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="too few for each rank"):
        build_model(small_config().model, 2, ranks=Ranks(2, 3))
    with pytest.raises(ConfigError, match="devices is 2, but this is one process"):
        small_train(tiny_log, small_config(devices=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()

    # There is nobody else to count with.
    monkeypatch.setattr(Ranks, "sum_", lambda self, x: x)

    def refuse(reason, **options):
        config, ranks = small_config(**options), Ranks(0, 2)
        model = build_model(config.model, tiny_log.num_items, ranks=ranks)
        fabric = open_fabric(config.training)
        with pytest.raises(ConfigError, match=reason):
            build_parts(model, tiny_log, split.train_end, config, fabric, ranks=ranks)

    monkeypatch.setattr(CrossEntropy, "sharded", False)
    refuse("'cross_entropy' needs the vectors of all items")
    monkeypatch.setattr(SASRec, "takes_features", False)
    refuse("'sasrec' does not say that it takes item_vectors")
