import itertools

import numpy as np
import pytest

from blossomrec.config import EvaluationConfig
from blossomrec.data.split import make_split
from blossomrec.errors import DataError
from blossomrec.evaluation import RankingOptions, compare, evaluate, significance
from blossomrec.evaluation.significance import (
    bootstrap_intervals,
    bootstrap_means,
    holm,
    sign_flip,
)
from ranking_oracle import TableScorer, prepared


@pytest.fixture(scope="module")
def log():
    rng = np.random.default_rng(4)
    return prepared([rng.integers(0, 150, n).tolist() for n in rng.integers(3, 41, 80)])


@pytest.fixture(scope="module")
def measured(log):
    """A function from noise to the evaluation of a scorer that knows the answers but for it."""
    cases = make_split(log, EvaluationConfig()).test
    table = np.zeros((log.num_items, log.num_items))
    for user in range(log.num_users):
        *_, last, target = log.history(user).items
        table[last, target] += 1

    def measure(noise, draw=0, **options):
        noisy = table + noise * np.random.default_rng(draw).random(table.shape)
        return evaluate(
            TableScorer(noisy), log, cases, RankingOptions(**({"filter_seen": False} | options))
        )

    return measure


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    samples = (rng.random((300, 400)) < 0.3).astype(float)
    intervals = bootstrap_intervals(dict(enumerate(samples)), seed=1)
    covered = np.mean([low <= 0.3 <= high for low, high in intervals.values()])
    assert 0.91 <= covered <= 0.98
    widths = [high - low for low, high in intervals.values()]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 400), rel=0.05)


def test_bootstrap_is_fixed_by_its_seed_and_centred(monkeypatch):
    values = np.random.default_rng(0).random((50, 2))
    means = bootstrap_means(values, seed=3)
    assert means.shape == (1000, 2)
    assert np.allclose(means.mean(0), values.mean(0), atol=0.01)
    assert np.allclose(means.std(0), values.std(0) / np.sqrt(50), rtol=0.1)
    monkeypatch.setattr(significance, "DRAWN_AT_ONCE", 50 * 7)
    assert np.allclose(bootstrap_means(values, seed=3), means)
    assert not np.allclose(bootstrap_means(values, seed=4), means)


def test_a_constant_has_an_interval_without_width():
    assert bootstrap_intervals({"hr@1": np.ones(9)}) == {"hr@1": (1.0, 1.0)}


def test_sign_flips_agree_with_all_of_them():
    rng = np.random.default_rng(5)
    differences = rng.normal(0.4, 1, (11, 3)).round(1)
    signs = np.array(list(itertools.product((-1, 1), repeat=11)))
    exact = (np.abs(signs @ differences) >= np.abs(differences.sum(0)) - 1e-9).mean(0)
    assert sign_flip(differences, permutations=40_000) == pytest.approx(exact, abs=0.01)


def test_p_values_are_uniform_when_nothing_differs():
    rng = np.random.default_rng(6)
    p_values = sign_flip(rng.normal(size=(60, 400)), permutations=999)
    assert np.mean(p_values <= 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.05)


def test_a_p_value_is_never_zero():
    assert sign_flip(np.ones((40, 1)), permutations=99).item() == 0.01


def test_holm_by_hand():
    assert holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.array([0.6, 0.7])) == pytest.approx([1, 1])


def test_a_better_model_is_told_apart(measured):
    good, bad = measured(0.5), measured(20.0)
    test = compare(good, bad)["ndcg@10"]
    assert test.difference == pytest.approx(test.first - test.second)
    assert 0 < test.low < test.difference < test.high
    assert test.p_permutation < 0.001
    assert test.p_wilcoxon < 0.001
    assert test.effect_size > 0.5
    assert test.users == 80


def test_swapping_the_two_mirrors_everything(measured):
    one, other = measured(3.0), measured(3.0, draw=1)
    forth, back = compare(one, other), compare(other, one)
    assert list(forth) == list(back) == list(one.per_user)
    for name, test in forth.items():
        mirrored = back[name]
        assert test.p_permutation == mirrored.p_permutation
        assert test.p_wilcoxon == pytest.approx(mirrored.p_wilcoxon)
        expected = (-mirrored.difference, -mirrored.high, -mirrored.low, -mirrored.effect_size)
        got = (test.difference, test.low, test.high, test.effect_size)
        assert got == pytest.approx(expected, abs=1e-12)


def test_a_model_does_not_differ_from_itself(measured):
    test = compare(measured(3.0), measured(3.0))["mrr@10"]
    assert (test.difference, test.low, test.high, test.effect_size) == (0, 0, 0, 0)
    assert test.p_permutation == test.p_wilcoxon == 1


def test_other_protocols_are_refused(measured, log):
    usual = measured(1.0)
    with pytest.raises(DataError, match="ranking is 'full' in the first and 'uni100'"):
        compare(usual, measured(1.0, ranking="uni100"))
    with pytest.raises(DataError, match="filter_seen is False in the first and True"):
        compare(usual, measured(1.0, filter_seen=True))
    with pytest.raises(DataError, match="seed is 0 in the first and 7"):
        sampled = {"ranking": "uni100"}
        compare(measured(1.0, **sampled), measured(1.0, **sampled, seed=7))
    cases = make_split(log, EvaluationConfig()).test.sample(30, seed=0)
    fewer = evaluate(
        TableScorer(np.eye(log.num_items)), log, cases, RankingOptions(filter_seen=False)
    )
    with pytest.raises(DataError, match="fingerprint"):
        compare(usual, fewer)
    with pytest.raises(DataError, match="ks"):
        compare(usual, measured(1.0, ks=(3,)))
