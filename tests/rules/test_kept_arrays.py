"""What expressions come to is kept as far as the budget goes, the last used longest."""

import numpy as np

from blossomrec.rules.kept_arrays import OVERHEAD, KeptArrays

SIZE = 1_000


def made(count):
    def make():
        made.calls.append(count)
        return np.zeros(count, np.int8)

    return make


def test_the_least_recently_used_leaves_and_the_budget_holds():
    made.calls = []
    kept = KeptArrays(2 * (SIZE + OVERHEAD + 4))
    first = kept.get("a", made(SIZE))
    kept.get("b", made(SIZE))
    assert kept.get("a", made(SIZE)) is first
    kept.get("c", made(SIZE))
    assert "a" in kept and "b" not in kept and "c" in kept
    assert len(made.calls) == 3 and len(kept) == 2
    assert kept.nbytes == 2 * (SIZE + OVERHEAD + 4) <= kept.budget


def test_one_that_is_larger_than_the_budget_drives_no_other_out():
    made.calls = []
    kept = KeptArrays(SIZE + OVERHEAD + 4)
    kept.get("a", made(SIZE))
    for _ in range(2):
        assert len(kept.get("b", made(2 * SIZE))) == 2 * SIZE
    assert "a" in kept and "b" not in kept and len(made.calls) == 3


def test_long_texts_count():
    kept = KeptArrays(10_000)
    kept.get("x" * 1_000, lambda: np.zeros(1))
    assert kept.nbytes >= 4_000
