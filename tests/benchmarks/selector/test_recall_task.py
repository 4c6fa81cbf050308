"""The recall task asks what can be answered, and only from where it says."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.selector.recall_task import RecallConfig, RecallTask, make_recall_task
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError

SMALL = RecallConfig(
    histories=40,
    length=128,
    items=60,
    cue_items=16,
    queries=4,
    cues=6,
    min_distance=20,
    max_distance=100,
    distractors=2,
)


def changed(**options) -> RecallTask:
    return make_recall_task(dataclasses.replace(SMALL, **options))


@pytest.fixture(scope="module")
def task() -> RecallTask:
    return make_recall_task(SMALL)


def cue_positions(history: np.ndarray, cue: int) -> list[int]:
    return [place for place, item in enumerate(history) if item == cue]


def test_truth_by_going_through_the_histories(task):
    """The truth, found again from the items alone: cues that occur twice, and what followed."""
    found = []
    for number, history in enumerate(task.items):
        cues = {int(item) for item in history if item < SMALL.cue_items}
        assert len(cues) == SMALL.cues
        pairs = []
        for cue in cues:
            places = cue_positions(history, cue)
            assert len(places) in (1, 2)
            if len(places) == 2:
                assert history[places[1] + 1] == history[places[0] + 1]
                pairs.append((number, places[1], places[0], int(history[places[0] + 1])))
        assert len(pairs) == SMALL.queries
        found += sorted(pairs)
    truth = np.stack((task.history, task.position, task.planted, task.answers), axis=1)
    assert found == [tuple(row) for row in truth.tolist()]


def test_items_stay_in_the_catalogue(task):
    assert task.items.shape == (SMALL.histories, SMALL.length)
    assert task.items.min() >= 0 and task.items.max() < SMALL.items
    assert task.answers.min() >= SMALL.cue_items


def test_last_event_answers_a_query(task):
    assert np.isin(np.arange(1, SMALL.histories + 1) * SMALL.length - 2, task.rows).all()


@pytest.mark.parametrize("block_size", [4, 16, 32])
def test_planted_blocks_hold_cue_and_answer(task, block_size):
    blocks = task.planted_blocks(block_size)
    for history, row, block, answer in zip(
        task.history, task.rows, blocks, task.answers, strict=True
    ):
        inside = task.items[history, block * block_size : (block + 1) * block_size].tolist()
        cue = task.items.ravel()[row]
        assert inside[inside.index(cue) + 1] == answer
    with pytest.raises(ValueError, match="block_size is 15"):
        task.planted_blocks(15)


def test_distances_are_log_uniform():
    distances = changed(histories=2_000, queries=1, cues=1)
    distances = distances.position - distances.planted
    assert distances.min() == 20 and distances.max() == 100 and not (distances % 2).any()
    share_near = np.mean(distances < np.sqrt(20 * 102))
    assert share_near == pytest.approx(0.5, abs=0.06)


def test_fixed_distance():
    task = changed(min_distance=64, max_distance=64)
    assert set(task.position - task.planted) == {64}


def test_control_form_answers_from_the_last_16_events():
    task = changed(control=True)
    for history, position, answer in zip(task.history, task.position, task.answers, strict=True):
        assert answer in task.items[history, max(0, position - 15) : position + 1]
    assert (task.position - task.planted).min() == 2
    assert (task.position - task.planted).max() == 16


def test_control_form_of_a_short_history():
    task = changed(control=True, length=12, queries=1, cues=1, distractors=0)
    assert (task.planted >= 0).all() and task.position.max() == 10
    assert (task.items.ravel()[task.rows + 1] == task.answers).all()


def test_distractors_share_items_with_the_pair():
    """Without them a large catalogue would show an answer only where it is planted and asked."""
    size = {"items": 100_000, "histories": 100}
    for distractors in (0, 1, 2):
        task = changed(distractors=distractors, **size)
        times = (task.items[task.history] == task.answers[:, None]).sum(1)
        assert np.median(times) == 2 + distractors
    for history, planted, answer in zip(task.history, task.planted, task.answers, strict=True):
        events = task.items[history]
        around = events[max(0, planted - 8) : planted + 10]
        shown = np.flatnonzero(events == answer)
        before = events[shown[shown % 2 == 1] - 1]
        assert np.isin(before[before >= SMALL.cue_items], around).all()


def test_noise_replaces_what_follows_the_query_not_the_truth():
    task = changed(histories=500, noise=0.5, items=5_000)
    rows, flat = task.rows, task.items.ravel()
    planted = task.history * SMALL.length + task.planted
    assert (flat[planted + 1] == task.answers).all()
    assert np.mean(flat[rows + 1] == task.answers) == pytest.approx(0.5, abs=0.05)


def test_same_seed_same_task(task):
    again = make_recall_task(SMALL)
    for name in ("items", "history", "position", "planted", "answers"):
        assert np.array_equal(getattr(again, name), getattr(task, name))
    assert not np.array_equal(changed(seed=1).items, task.items)


def test_batch_asks_the_queries_or_everything(task):
    batch = task.batch()
    assert np.array_equal((batch.targets >= 0).nonzero()[:, 0].numpy(), task.rows)
    assert np.array_equal(batch.targets[torch.from_numpy(task.rows)].numpy(), task.answers)
    assert batch.cu_seqlens.dtype == torch.int32 and batch.num_histories == SMALL.histories
    assert len(batch.items) == batch.cu_seqlens[-1] and batch.max_length == SMALL.length
    everywhere = task.batch(everywhere=True).targets.view(SMALL.histories, -1)
    assert (everywhere[:, -1] == -1).all()
    assert np.array_equal(everywhere[:, :-1].numpy(), task.items[:, 1:])


def test_take_keeps_the_truth_of_its_histories(task):
    part = task.take(10, 15)
    assert np.array_equal(part.items, task.items[10:15])
    assert len(part.history) == 5 * SMALL.queries and part.history.max() == 4
    assert (part.items.ravel()[part.rows + 1] == part.answers).all()


def test_log_and_cases_ask_the_same(task):
    log = EventLog.prepare(task.events())
    cases = task.cases()
    targets = log.items[log.offsets[cases.users] + cases.history_end]
    assert np.array_equal(targets, log.item_vocabulary.rows(task.answers))
    assert (cases.target_end - cases.history_end == 1).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"length": 127}, "length is 127"),
        ({"min_distance": 21}, "min_distance is 21"),
        ({"max_distance": 128}, "max_distance is 128"),
        ({"min_distance": 102}, "max_distance is 100"),
        ({"cue_items": 59}, "cue_items is 59"),
        ({"queries": 7}, "cues is 6"),
        ({"cues": 17}, "cues is 17"),
        ({"noise": 1.5}, "noise is 1.5"),
        ({"distractors": 20}, "length is 128: too short for 6 cues"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ConfigError, match=message):
        changed(**options)
