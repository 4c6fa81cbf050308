"""Where there is a choice, and what a uniform one does, against loops and the batch's own rule."""

import math

import numpy as np
import pytest
import torch

from blossomrec.report.inspect.selection_measures import (
    RANKS,
    SelectionForm,
    choosing_rows,
    first_choosing,
    ranked,
    sample_choosing,
    uniform_choice,
)

FORMS = [
    SelectionForm(block_size, top_n, causal)
    for block_size, top_n in ((4, 2), (1, 1), (5, 3))
    for causal in (True, False)
]
LENGTHS = np.array([31, 8, 12, 31, 15, 1, 47])


def eligible(position, length, form):
    own = position // form.block_size
    if form.causal:
        return list(range(own))
    return [block for block in range(length // form.block_size) if block != own]


def choosing(length, form):
    return [at for at in range(length) if len(eligible(at, length, form)) > form.top_n]


def events_with_a_choice(form):
    return [(n, at) for n, length in enumerate(LENGTHS) for at in choosing(length, form)]


def pairs(form, size, seed):
    """The sampled events as (history, position)."""
    drawn = sample_choosing(LENGTHS, form, size, seed)
    return [tuple(event) for event in np.stack(drawn, 1).tolist()]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_first_event_with_a_choice_is_that_of_a_batch(form):
    lengths = np.arange(1, 60)
    first = first_choosing(lengths, form)
    cu_seqlens = torch.from_numpy(np.cumsum([0, *lengths])).int()
    rows = choosing_rows(cu_seqlens, int(lengths.sum()), **vars(form))
    starts = cu_seqlens[:-1].numpy()
    parts = zip(first, lengths, starts, strict=True)
    expected = np.concatenate([np.arange(low, high) + start for low, high, start in parts])
    assert rows.tolist() == expected.tolist()


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_large_sample_holds_every_event_once(form):
    assert pairs(form, 10_000, seed=0) == events_with_a_choice(form)


def test_a_sample_is_fixed_by_its_seed_and_fair():
    form = SelectionForm(4, 2, True)
    drawn = [pairs(form, 20, seed) for seed in range(400)]
    assert drawn[0] == pairs(form, 20, 0)
    assert drawn[0] != drawn[1]
    assert all(len(set(each)) == 20 and each == sorted(each) for each in drawn)
    events = events_with_a_choice(form)
    times = [sum(event in each for each in drawn) for event in events]
    expected = 400 * 20 / len(events)
    assert min(times) > 0.6 * expected and max(times) < 1.4 * expected


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_uniform_choice_against_loops(form):
    found = uniform_choice(LENGTHS, form)
    distances = np.zeros(-(-LENGTHS.max() // form.block_size))
    hubs, entropy, events = np.zeros(RANKS), 0.0, 0
    for length in LENGTHS:
        counts = np.zeros(max(1, length // form.block_size))
        there = choosing(length, form)
        for at in there:
            able = eligible(at, length, form)
            for block in able:
                counts[block] += form.top_n / len(able)
                distances[abs(at // form.block_size - block)] += form.top_n / len(able)
        if not there:
            continue
        events += len(there)
        largest = sorted(counts, reverse=True)[:RANKS]
        hubs[: len(largest)] += largest
        parts = counts[counts > 0] / counts.sum()
        entropy -= len(there) * (parts * np.log(parts)).sum() / math.log(len(counts))
    np.testing.assert_allclose(found.distances, distances / distances.sum(), atol=1e-12)
    np.testing.assert_allclose(found.hub_shares, hubs / events, atol=1e-12)
    assert found.entropy == pytest.approx(entropy / events, abs=1e-9)


def test_ranked_keeps_the_largest():
    counts = np.arange(2 * (RANKS + 5)).reshape(2, -1)
    assert ranked(counts).tolist() == [row[::-1][:RANKS] for row in counts.tolist()]
    assert ranked(np.array([1.0, 3.0])).tolist() == [3.0, 1.0] + [0.0] * (RANKS - 2)
