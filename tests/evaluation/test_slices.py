import numpy as np
import pytest

from blossomrec.evaluation.metrics import by_history_length


def test_every_case_is_in_the_bin_of_its_length():
    lengths = np.array([1, 9, 10, 49, 50, 1_999, 2_000, 90_000])
    values = np.arange(8.0)
    slices = by_history_length(lengths, {"ndcg@10": values})
    assert [part.label for part in slices] == [
        "1–9",
        "10–19",
        "20–49",
        "50–99",
        "1,000–1,999",
        "2,000+",
    ]
    assert [part.users for part in slices] == [2, 1, 1, 1, 1, 2]
    means = [part.metrics["ndcg@10"] for part in slices]
    assert means == pytest.approx([0.5, 2, 3, 4, 5, 6.5])
    assert slices[0].intervals["ndcg@10"] == (0.0, 1.0)
    assert (slices[-1].low, slices[-1].high) == (2_000, None)


def test_slices_of_few_users_are_marked():
    lengths = np.array([5] * 30 + [15] * 29)
    many, few = by_history_length(lengths, {"ndcg@10": np.ones(59)})
    assert (many.few, many.marked_label) == (False, "1–9")
    assert (few.few, few.marked_label) == (True, "10–19 *")


def test_slices_add_up_to_the_whole():
    rng = np.random.default_rng(0)
    lengths, values = rng.integers(1, 500, 300), rng.random(300)
    slices = by_history_length(lengths, {"hr@1": values})
    total = sum(part.users * part.metrics["hr@1"] for part in slices)
    assert total / 300 == pytest.approx(values.mean())
    for part in slices:
        low, high = part.intervals["hr@1"]
        assert low <= part.metrics["hr@1"] <= high
