"""Packed batches: what they hold, once and only once, and that they can be made again."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import numpy as np
import pytest
import torch

from blossomrec.config import TrainingConfig
from blossomrec.data.batch import Batch, pack
from blossomrec.data.batches import ClozeBatches, HistoryBatches, TrainingBatches
from blossomrec.data.batching.importance import target_importance
from blossomrec.data.history import History
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError


def lengths_of(log) -> np.ndarray:
    return np.diff(np.asarray(log.offsets))


def pieces(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Items and targets of each history in the batch."""
    edges = batch.cu_seqlens.tolist()
    items, targets = batch.items.tolist(), batch.targets
    targets = [-1] * len(items) if targets is None else targets.tolist()
    return [(items[a:b], targets[a:b]) for a, b in itertools.pairwise(edges)]


def check_form(batch: Batch) -> None:
    for each in (batch.items, batch.targets):
        assert each is None or (each.dtype == torch.int64 and len(each) == len(batch.items))
    assert batch.cu_seqlens.dtype == torch.int32
    lengths = batch.cu_seqlens.diff()
    assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == len(batch.items)
    assert lengths.min() >= 1 and lengths.max() == batch.max_length
    assert batch.num_histories == len(lengths)


def same(a: Batch, b: Batch) -> bool:
    mine, theirs = a.tensors(), b.tensors()
    alike = mine.keys() == theirs.keys() and a.max_length == b.max_length
    return alike and all(torch.equal(mine[name], theirs[name]) for name in mine)


def times_of(batch: Batch) -> list[list[int]]:
    """Times of each history in the batch."""
    return [part.tolist() for part in batch.times.split(batch.cu_seqlens.diff().tolist())]


def training(log, **changes) -> TrainingBatches:
    options = {"train_end": lengths_of(log), "max_len": 16, "tokens_per_batch": 100, "seed": 3}
    return TrainingBatches(log, **(options | changes))


def cloze(log, **changes) -> ClozeBatches:
    options = {
        "train_end": lengths_of(log),
        "max_len": 16,
        "tokens_per_batch": 100,
        "seed": 3,
        "mask_probability": 0.3,
    }
    return ClozeBatches(log, **(options | changes))


class TestPack:
    def test_histories_one_after_another(self):
        batch = pack([np.array([4, 5], dtype=np.int32), np.array([6]), np.array([7, 8, 9])])
        check_form(batch)
        assert batch.items.tolist() == [4, 5, 6, 7, 8, 9]
        assert batch.targets is None and batch.times is None
        assert batch.cu_seqlens.tolist() == [0, 2, 3, 6]
        assert batch.max_length == 3

    @pytest.mark.parametrize(
        ("histories", "message"),
        [([], "no history"), ([np.array([1]), np.array([], dtype=np.int64)], "history 1 ")],
    )
    def test_nothing_to_pack(self, histories, message):
        with pytest.raises(DataError, match=message):
            pack(histories)

    def test_what_a_model_takes_is_packed(self):
        histories = [History(np.array([4, 5]), np.array([10, 20])), History(np.array([6]))]
        assert pack(histories).times is None
        with pytest.raises(DataError, match=r"history 1 \(counted from 0\) has no times"):
            pack(histories, ("items", "times"))
        assert pack(histories[:1], ("items", "times")).times.tolist() == [10, 20]

    def test_a_padded_batch_has_events_of_nobody(self):
        batch = Batch(
            items=torch.tensor([4, 5, 6]),
            cu_seqlens=torch.tensor([0, 2, 3], dtype=torch.int32),
            max_length=2,
            targets=torch.tensor([5, -1, 7]),
            times=torch.tensor([10, 20, 30]),
            target_weights=torch.tensor([0.5, 0.0, 2.0]),
        )
        padded = batch.pad(tokens=8, histories=6, max_length=3)
        assert padded.items.tolist() == [4, 5, 6, 0, 0, 0, 0, 0]
        assert padded.targets.tolist() == [5, -1, 7, -1, -1, -1, -1, -1]
        assert padded.times.tolist() == [10, 20, 30, 0, 0, 0, 0, 0]
        assert padded.target_weights.tolist() == [0.5, 0.0, 2.0, 0, 0, 0, 0, 0]
        assert padded.cu_seqlens.tolist() == [0, 2, 3, 6, 8, 8, 8] and padded.max_length == 3
        assert padded.cu_seqlens.dtype == torch.int32
        assert batch.pad(2, 6, 3) is None and batch.pad(8, 3, 3) is None
        room = padded.map(torch.zeros_like)
        kept = room.tensors()
        room.copy_(padded)
        assert same(room, padded)
        assert all(each is kept[name] for name, each in room.tensors().items())

    def test_to_device(self):
        batch = pack([np.array([1, 2])])
        assert same(batch, batch.to("cpu"))
        assert batch.to("meta").items.device.type == "meta"


class TestTraining:
    @pytest.mark.parametrize("max_len", [2, 7, 16, 60, 500])
    @pytest.mark.parametrize("held_out", [0, 2])
    def test_every_pair_once_an_epoch(self, repeat_log, max_len, held_out):
        ends = np.maximum(lengths_of(repeat_log) - held_out, 0)
        batches = training(repeat_log, train_end=ends, max_len=max_len)
        expected = Counter()
        for user, end in enumerate(ends):
            history = repeat_log.history(user).items[:end].tolist()
            expected.update(itertools.pairwise(history))
        for epoch in (0, 1):
            met = Counter()
            for batch in batches.epoch(epoch):
                check_form(batch)
                for items, targets in pieces(batch):
                    assert len(items) <= max_len
                    assert items[1:] == targets[:-1]
                    met.update(zip(items, targets, strict=True))
            assert met == expected
            assert met.total() == batches.num_events

    def test_history_that_fits_is_one_window(self, tiny_log):
        batches = training(tiny_log, max_len=59)
        histories = [items for batch in batches.epoch(0) for items, _ in pieces(batch)]
        expected = [tiny_log.history(u).items[:-1].tolist() for u in range(60)]
        assert sorted(histories) == sorted(history for history in expected if history)

    def test_token_budget(self, tiny_log):
        for budget in (1, 30, 100, 10**9):
            batches = list(training(tiny_log, tokens_per_batch=budget).epoch(0))
            assert all(len(b.items) <= budget or b.num_histories == 1 for b in batches)
            assert len(batches) == training(tiny_log, tokens_per_batch=budget).steps(0)
        assert len(batches) == 1
        sizes = [len(batch.items) for batch in training(tiny_log).epoch(0)]
        assert np.mean(sizes[:-1]) > 85

    def test_same_seed_and_epoch_give_the_same_batches(self, tiny_log):
        first, again = training(tiny_log), training(tiny_log)
        list(first.epoch(4))
        for a, b in zip(first.epoch(2), again.epoch(2), strict=True):
            assert same(a, b)

    def test_seeds_and_epochs_differ_in_order_and_cuts(self, tiny_log):
        def windows(batches, epoch):
            return [tuple(i) for batch in batches.epoch(epoch) for i, _ in pieces(batch)]

        a = windows(training(tiny_log), 0)
        for b in (windows(training(tiny_log), 1), windows(training(tiny_log, seed=4), 0)):
            assert a != b and set(a) != set(b)

    @pytest.mark.parametrize("make", [training, cloze])
    def test_continuing_in_the_middle(self, tiny_log, make):
        whole = list(make(tiny_log).epoch(1))
        for start in (0, 1, 7, len(whole) - 1, len(whole)):
            rest = list(make(tiny_log).epoch(1, start_step=start))
            assert len(rest) == len(whole) - start
            assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))

    def test_two_epochs_at_once(self, tiny_log):
        batches = training(tiny_log)
        expected = [list(batches.epoch(0)), list(batches.epoch(1))]
        mixed = list(zip(batches.epoch(0), batches.epoch(1), strict=False))
        for step, pair in enumerate(mixed):
            assert same(pair[0], expected[0][step]) and same(pair[1], expected[1][step])

    @pytest.mark.parametrize("make", [training, cloze])
    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"max_len": 1}, ConfigError, "max_len is 1: it must be at least 2"),
            ({"tokens_per_batch": 0}, ConfigError, "tokens_per_batch is 0"),
            ({"train_end": np.ones(60, dtype=np.int64)}, DataError, "at least 2 training events"),
            ({"train_end": np.full(60, 61)}, ValueError, r"train_end\[0\] is 61"),
            ({"train_end": np.full(60, -1)}, ValueError, r"train_end\[0\] is -1"),
            ({"train_end": np.zeros(3)}, ValueError, "shape"),
        ],
    )
    def test_refused(self, tiny_log, make, changes, error, message):
        with pytest.raises(error, match=message):
            make(tiny_log, **changes)


class TestCloze:
    @pytest.mark.parametrize("max_len", [2, 16, 500])
    def test_every_event_once_an_epoch(self, repeat_log, max_len):
        ends = lengths_of(repeat_log) - 1
        batches = cloze(repeat_log, train_end=ends, max_len=max_len)
        met = []
        for batch in batches.epoch(0):
            check_form(batch)
            masked = batch.targets >= 0
            assert torch.equal(masked, batch.items == repeat_log.num_items)
            for items, targets in pieces(batch):
                assert len(items) <= max_len and max(targets) >= 0
            met += torch.where(masked, batch.targets, batch.items).tolist()
        used = [repeat_log.history(user).items[:end] for user, end in enumerate(ends) if end >= 2]
        assert sorted(met) == sorted(np.concatenate(used).tolist())
        assert len(met) == batches.num_events

    def test_share_of_masks_and_last_events(self, tiny_log):
        windows = [
            targets
            for epoch in range(40)
            for batch in cloze(tiny_log).epoch(epoch)
            for _, targets in pieces(batch)
            if len(targets) == 16
        ]
        masked = np.array(windows) >= 0
        only_last = masked[:, -1] & (masked.sum(axis=1) == 1)
        assert 0.07 < only_last.mean() < 0.12
        assert 0.28 < masked[~only_last].mean() < 0.33

    def test_masks_change_with_epoch_and_step(self, tiny_log):
        batches = cloze(tiny_log, max_len=500, tokens_per_batch=60)
        first = list(batches.epoch(0))
        patterns = {tuple((batch.targets >= 0).tolist()) for batch in first}
        assert len(patterns) > 0.9 * len(first)
        again = {tuple((batch.targets >= 0).tolist()) for batch in batches.epoch(1)}
        assert len(patterns & again) < 3

    @pytest.mark.parametrize("probability", [0, 1, -0.1, float("nan")])
    def test_mask_probability(self, tiny_log, probability):
        with pytest.raises(ConfigError, match="mask_probability"):
            cloze(tiny_log, mask_probability=probability)


class TestImportance:
    def importance(self, log, **options):
        return target_importance(log, TrainingConfig(**options))

    def test_of_weights_and_kinds(self, kind_log, tiny_log):
        kinds = np.array([None, *kind_log.fields.kinds])[np.asarray(kind_log.kinds)]
        weights = np.asarray(kind_log.weights)
        assert self.importance(tiny_log) is None
        assert self.importance(kind_log, weights="off") is None
        for choice in ("auto", "on"):
            assert np.array_equal(self.importance(kind_log, weights=choice), weights)
        of_kinds = (kinds == "buy") + np.float32(0.25) * (kinds == "click")
        targets = " buy = 1, click=0.25"
        only = self.importance(kind_log, weights="off", targets=targets)
        assert only.dtype == np.float32 and np.array_equal(only, of_kinds)
        both = self.importance(kind_log, targets=targets)
        assert both.dtype == np.float32 and np.array_equal(both, of_kinds * weights)
        assert 0 < (both > 0).mean() < 0.8

    @pytest.mark.parametrize(
        ("targets", "words"),
        [
            ("purchase=1", r"'purchase=1': there is no kind 'purchase'; .* kinds '.*'buy'"),
            ("buy=1,", r"'buy=1,': '' is not of the form kind=weight; .* kinds .*'click'"),
            ("buy", r"'buy': 'buy' is not of the form kind=weight"),
            ("=1", r"'=1': there is no kind ''"),
            ("buy=1,buy=2", r"kind 'buy' is there twice"),
            ("buy=much", r"the weight of 'buy' is 'much', a finite number of at least 0"),
            ("buy=", r"the weight of 'buy' is '', a finite number"),
            ("buy=-1", r"the weight of 'buy' is '-1'"),
            ("buy=nan", r"the weight of 'buy' is 'nan'"),
            ("buy=inf", r"the weight of 'buy' is 'inf'"),
            ("buy=1e39", r"the weight of 'buy' is '1e39'"),
            ("buy=0,click=0", r"the weight of one kind must be over 0"),
            ("buy=1e-60", r"the weight of one kind must be over 0"),
            ("buy=3e38", r"'buy=3e38': by the weights of .* it is not finite in 32 bits"),
        ],
    )
    def test_wrong_targets(self, kind_log, targets, words):
        with pytest.raises(ConfigError, match=f"^training.targets is .*{words}"):
            self.importance(kind_log, targets=targets)

    def test_a_log_without_what_is_asked_for(self, tiny_log):
        with pytest.raises(ConfigError, match=r"training.targets is 'buy=1': .* have no kinds"):
            self.importance(tiny_log, targets="buy=1")
        with pytest.raises(ConfigError, match=r"training.weights is 'on', but .* have no weights"):
            self.importance(tiny_log, weights="on")

    @pytest.mark.parametrize("wrong", [-0.5, np.nan, np.inf])
    def test_weights_that_are_none(self, kind_log, monkeypatch, wrong):
        weights = np.array(kind_log.weights)
        weights[7] = wrong
        monkeypatch.setattr(kind_log, "weights", weights)
        with pytest.raises(DataError, match=f"has the weight {wrong}: .* finite and at least 0"):
            self.importance(kind_log)
        assert self.importance(kind_log, weights="off") is None

    def test_next_events_count_as_the_log_says(self, kind_log):
        importance = self.importance(kind_log, targets="buy=2,cart=1")
        batches = training(kind_log, importance=importance)
        plain = training(kind_log)
        met = []
        for batch, same_without in zip(batches.epoch(1), plain.epoch(1), strict=True):
            counted = batch.target_weights
            assert counted.dtype == torch.float32
            assert torch.equal(batch.items, same_without.items)
            assert torch.equal(counted > 0, batch.targets >= 0)
            kept = torch.where(counted > 0, same_without.targets, -1)
            assert torch.equal(batch.targets, kept)
            met += counted.tolist()
        starts = np.asarray(kind_log.offsets)[:-1]
        assert sorted(met) == sorted(np.delete(importance, starts).tolist())

    def test_masked_events_count_as_the_log_says(self, kind_log):
        importance = self.importance(kind_log, targets="buy=2,cart=1")
        batches = cloze(kind_log, importance=importance, max_len=60)
        where = {
            tuple(kind_log.history(user).items): slice(*kind_log.offsets[user : user + 2])
            for user in range(60)
        }
        for batch, plain in zip(
            batches.epoch(0), cloze(kind_log, max_len=60).epoch(0), strict=True
        ):
            assert torch.equal(batch.items, plain.items)
            edges = plain.cu_seqlens.tolist()
            for start, stop in itertools.pairwise(edges):
                masked = plain.targets[start:stop] >= 0
                events = torch.where(masked, plain.targets[start:stop], plain.items[start:stop])
                counts = torch.from_numpy(importance[where[tuple(events.tolist())]]) * masked
                assert torch.equal(batch.target_weights[start:stop], counts)
                kept = torch.where(counts > 0, events, -1)
                assert torch.equal(batch.targets[start:stop], kept)

    def test_a_mask_hides_what_recommending_does_not_know(self, kind_log):
        names = ("items", "times", "kinds", "context")
        unasked = cloze(kind_log, inputs=names).epoch(0)
        asked = cloze(kind_log, inputs=(*names, "asked", "asked_kinds")).epoch(0)
        seen = cloze(kind_log).epoch(0)
        for one, other, plain in zip(unasked, asked, seen, strict=True):
            masked = plain.targets >= 0
            assert torch.equal(one.kinds, torch.where(masked, 0, other.kinds))
            assert (other.kinds[masked] > 0).any() and (one.kinds[~masked] > 0).any()
            for batch in (one, other):
                assert batch.context.dtype == torch.float32
                assert torch.equal(batch.context.isnan().all(1), masked)
                assert not batch.context[~masked].isnan().any()

    @pytest.mark.parametrize("make", [training, cloze])
    def test_nothing_that_counts_is_told(self, kind_log, make):
        importance = np.zeros(kind_log.num_events, np.float32)
        with pytest.warns(UserWarning, match="no training event that counts as a target"):
            make(kind_log, importance=importance)
        # What is held out does not count, and the first event of a history follows nothing.
        importance[np.asarray(kind_log.offsets)[1:] - 1] = 1.0
        ends = lengths_of(kind_log) - 1
        with pytest.warns(UserWarning, match="nothing is learned"):
            make(kind_log, importance=importance, train_end=ends)
        importance[:] = 0
        importance[np.asarray(kind_log.offsets)[:-1]] = 1.0
        if make is training:
            with pytest.warns(UserWarning, match="nothing is learned"):
                make(kind_log, importance=importance)
        else:
            make(kind_log, importance=importance)


class TestHistories:
    @pytest.mark.parametrize("max_len", [2, 10, 1000])
    @pytest.mark.parametrize("budget", [1, 64, 10**9])
    def test_last_events_before_the_end_in_order_of_cases(self, tiny_log, max_len, budget):
        rng = np.random.default_rng(0)
        users = rng.integers(0, 60, 200)
        ends = rng.integers(1, lengths_of(tiny_log)[users] + 1)
        batches = HistoryBatches(tiny_log, users, ends, max_len=max_len, tokens_per_batch=budget)
        met, place = [], 0
        for cases, batch in batches:
            check_form(batch)
            assert (cases.start, cases.stop) == (place, place + batch.num_histories)
            assert len(batch.items) <= budget or batch.num_histories == 1
            place = cases.stop
            met += pieces(batch)
        expected = [
            tiny_log.history(user).items[:end][-max_len:].tolist()
            for user, end in zip(users, ends, strict=True)
        ]
        assert [items for items, _ in met] == expected
        assert all(set(targets) == {-1} for _, targets in met)
        assert len(batches) == len(list(batches))

    def test_times_come_with_the_events_where_they_are_asked_for(self, tiny_log):
        users, ends = np.arange(60), lengths_of(tiny_log)
        sizes = {"max_len": 20, "tokens_per_batch": 100}
        assert all(b.times is None for _, b in HistoryBatches(tiny_log, users, ends, **sizes))
        timed = HistoryBatches(tiny_log, users, ends, **sizes, inputs=("items", "times"))
        met = [part for _, batch in timed for part in times_of(batch)]
        assert met == [tiny_log.history(user)[-20:].times.tolist() for user in users]

    def test_no_cases(self, tiny_log):
        none = np.array([], dtype=np.int64)
        batches = HistoryBatches(tiny_log, none, none, max_len=5, tokens_per_batch=5)
        assert list(batches) == [] and len(batches) == 0

    @pytest.mark.parametrize(
        ("users", "ends", "error", "message"),
        [
            ([60], [1], ValueError, "from 0 to 59"),
            ([-1], [1], ValueError, "from 0 to 59"),
            ([0, 1], [1, 0], ValueError, r"history_end\[1\] is 0: it must be from 1"),
            ([0], [61], ValueError, r"history_end\[0\] is 61"),
            ([0, 1], [1], ValueError, "shape"),
        ],
    )
    def test_refused(self, tiny_log, users, ends, error, message):
        with pytest.raises(error, match=message):
            HistoryBatches(tiny_log, users, ends, max_len=5, tokens_per_batch=5)


def test_an_epoch_over_a_million_events_takes_under_half_a_second(tmp_path):
    import polars as pl

    events = 1_000_000
    rng = np.random.default_rng(0)
    users = np.sort(rng.integers(0, 6_000, events))
    frame = pl.DataFrame(
        {
            "user_id": users,
            "item_id": rng.integers(0, 3_000, events),
            "timestamp": np.arange(events),
        }
    )
    log = EventLog.prepare(frame, tmp_path / "log")
    ends = lengths_of(log)
    options = {"max_len": 200, "tokens_per_batch": 16_384, "seed": 0}
    for make in (
        lambda: TrainingBatches(log, ends, **options).epoch(0),
        lambda: ClozeBatches(log, ends, mask_probability=0.2, **options).epoch(0),
    ):
        start = time.process_time()
        tokens = sum(len(batch.items) for batch in make())
        assert tokens >= events - 6_000
        assert time.process_time() - start < 0.5
