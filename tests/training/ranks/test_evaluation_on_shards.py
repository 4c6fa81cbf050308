"""Two ranks, each with a part of the catalogue, rank as one that has it all."""

from __future__ import annotations

import numpy as np
import pytest
from ranks_cases import BEGUN, EVALUATED

from blossomrec.evaluation.evaluation import load_evaluation


@pytest.mark.parametrize("how", EVALUATED)
@pytest.mark.parametrize("name", BEGUN)
def test_ranks_lists_and_metrics_are_the_same(trained, name, how):
    one = load_evaluation(trained / "evaluated-one" / name / f"{how}-0.json")
    for rank in range(2):
        two = load_evaluation(trained / "evaluated-two" / name / f"{how}-{rank}.json")
        assert one.protocol == two.protocol
        for array in ("users", "lengths", "offsets", "ranks", "top", "popularity"):
            np.testing.assert_array_equal(getattr(one, array), getattr(two, array), err_msg=array)
        assert one.metrics == two.metrics
    # Neither all first nor all last, and more cases than a block has.
    assert len(np.unique(one.ranks)) > 5 and len(one.users) > 16
