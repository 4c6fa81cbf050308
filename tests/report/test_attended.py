import numpy as np
import pytest

from blossomrec.report.attention_profile import attended_share, distance_shares


def choices(length, block_size, pick, slots=2, causal=True):
    """Selected blocks [length, slots] of one history; ``pick`` orders the eligible ones."""
    selected = np.full((length, slots), -1)
    for t in range(length):
        own = t // block_size
        eligible = [j for j in range(length // block_size) if j != own and (j < own or not causal)]
        taken = pick(eligible)[:slots]
        selected[t, : len(taken)] = taken
    return selected


def test_share_of_every_cell():
    selected = choices(12, 4, lambda eligible: eligible[:1])
    share, tall, wide = attended_share(selected, 4)
    assert (tall, wide) == (1, 1)
    expected = np.zeros((3, 12))
    expected[0, 4:] = 1
    assert share.tolist() == expected.tolist()


def test_long_histories_are_averaged():
    selected = choices(1_001, 4, lambda eligible: eligible)
    share, tall, wide = attended_share(selected, 4, columns=50, rows=16)
    assert share.shape[0] <= 16
    assert share.shape[1] <= 50
    assert (tall * share.shape[0], wide * share.shape[1]) >= (251, 1_001)
    assert share.sum(0) == pytest.approx(np.ones(share.shape[1]))


def test_distances_of_the_oldest_block():
    # With two places there is a choice from block 3 on; the oldest two are 2 and 3 back there.
    selected = choices(16, 4, lambda eligible: eligible[:2])
    chosen, chance = distance_shares([selected], 4)
    assert chosen.tolist() == [0, 0, 0.5, 0.5]
    assert chance == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("causal", [True, False])
def test_a_uniform_choice_looks_like_chance(causal):
    rng = np.random.default_rng(0)
    selections = [
        choices(n, 4, lambda eligible: rng.permutation(eligible).tolist(), causal=causal)
        for n in (403, 2_000)
    ]
    groups = [np.stack([selected, selected], 1) for selected in selections]
    chosen, chance = distance_shares(groups, 4)
    assert chosen.sum() == pytest.approx(1)
    assert chance.sum() == pytest.approx(1)
    assert np.abs(np.cumsum(chosen - chance)).max() < 0.03


def test_nothing_is_counted_where_nothing_is_chosen():
    selected = choices(11, 4, lambda eligible: eligible)
    chosen, chance = distance_shares([selected], 4)
    assert chosen.sum() == chance.sum() == 0
