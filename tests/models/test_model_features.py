"""Inputs besides ids: buckets of time, gaps of packed histories, sums of content."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from blossomrec.data.features import Categories, Numbers, Titles, Vectors
from blossomrec.models.event_inputs import GAP_BUCKETS, EventInputs, gap_buckets, gaps
from blossomrec.models.features import Content
from blossomrec.models.inputs import says_something


def test_buckets_rise_with_the_gap_and_tell_unknown_from_none():
    seconds = torch.tensor([-5, -1, 0, 1, 2, 3, 7, 3_600, 2**31, 2**60])
    found = gap_buckets(seconds).tolist()
    assert found[:3] == [0, 0, 1]
    assert found[2:] == sorted(found[2:])
    assert max(found) == GAP_BUCKETS - 1
    # Twice the gap is two buckets on.
    assert gap_buckets(torch.tensor([1_023, 2_047])).diff().item() == 2


def test_gaps_stay_within_a_history():
    seconds = torch.tensor([5, 9, 9, 100, 40, 41])
    found = gaps(seconds, torch.tensor([0, 3, 4, 6, 6, 6], dtype=torch.int32))
    assert found.tolist() == [-1, 4, 0, -1, -1, 1]


def test_gaps_go_on_from_the_event_before():
    seconds = torch.tensor([5, 9, 40])
    bounds = torch.tensor([0, 2, 2, 3], dtype=torch.int32)
    found = gaps(seconds, bounds, torch.tensor([3, 7, -1]))
    assert found.tolist() == [2, 4, -1]


def test_times_out_of_order_have_no_negative_gap():
    assert gaps(torch.tensor([9, 5]), torch.tensor([0, 2], dtype=torch.int32)).tolist() == [-1, 0]


def test_moments_start_at_nothing_and_know_hour_and_weekday():
    moments: Any = EventInputs(4, gap=True, clock=True)
    seconds = torch.tensor([0, 3_600 * 25, 86_400 * 4])  # Thursday 0:00, Friday 1:00, Monday
    assert not moments(torch.tensor([0, 5, -1]), seconds).any()
    with torch.no_grad():
        moments.embeddings.weight[64 + 24 :, 0] = torch.arange(7.0)
        moments.embeddings.weight[64 : 64 + 24, 1] = torch.arange(24.0)
    found = moments(torch.tensor([0, 5, -1]), seconds)
    assert found[:, 0].tolist() == [3, 4, 0]
    assert found[:, 1].tolist() == [0, 1, 0]


def genres() -> Categories:
    return Categories(
        Titles.of(["Drama", "War"]), np.array([1, 2, 0, 2], np.int32), np.array([0, 2, 3, 4])
    )


def test_content_is_the_sum_of_embeddings_and_projections():
    vectors = Vectors(np.array([[3, 4], [np.nan, np.nan], [6, 8]], np.float32))
    price = Numbers(np.array([1, np.nan, 3], np.float32))
    content: Any = Content({"genres": genres(), "price": price, "text": vectors}, 5)
    bag, number, vector = (
        content.categories[0].bag.weight,
        content.numbers[0].project.weight,
        content.numbers[1].project.weight,
    )
    expected = torch.stack(
        [
            bag[1] + bag[2] - number[:, 0] + vector @ torch.tensor([3.0, 4.0]) / 7.5,
            bag[0],
            bag[2] + number[:, 0] + vector @ torch.tensor([6.0, 8.0]) / 7.5,
        ]
    )
    torch.testing.assert_close(content(), expected)


def test_the_gradient_reaches_all_tables():
    content = Content({"genres": genres(), "price": Numbers(np.arange(3, dtype=np.float32))}, 4)
    content().square().sum().backward()
    for name, parameter in content.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_weights_are_saved_without_the_table():
    content, other = Content({"genres": genres()}, 4), Content({"genres": genres()}, 4)
    other.load_state_dict(content.state_dict())
    torch.testing.assert_close(other(), content())
    assert not any("values" in name for name in content.state_dict())


@pytest.mark.parametrize("values", [[np.nan, np.nan], [2.0, 2.0]])
def test_a_number_that_tells_nothing_is_no_fault(values):
    content = Content({"price": Numbers(np.array(values, np.float32))}, 4)
    assert not content().any()


def test_titles_alone_say_nothing():
    assert not says_something({"title": Titles.of(["a", "b"])})
