"""Is a difference more than chance: bootstrap intervals and paired tests over users."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.errors import DataError

if TYPE_CHECKING:
    from blossomrec.evaluation.evaluation import Evaluation

RESAMPLES = 1_000
PERMUTATIONS = 10_000
LEVEL = 0.95
# Numbers drawn at a time; bounds memory where there are many cases.
DRAWN_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class PairedTest:
    """One metric of two models for the same users; differences are first minus second."""

    metric: str
    first: float
    second: float
    difference: float
    low: float  # 95 % bootstrap interval of the difference
    high: float
    p_permutation: float  # two-sided paired sign-flip test of the mean difference
    p_wilcoxon: float  # two-sided Wilcoxon signed-rank test
    effect_size: float  # Cohen's d_z: mean over standard deviation of the differences
    users: int


def bootstrap_means(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Column means of ``values`` [M, C] with its rows drawn again: float64 [RESAMPLES, C]."""
    count = len(values)
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // count)
    means = []
    for begin in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - begin)
        drawn = rng.integers(0, count, size=(size, count))
        drawn += np.arange(size)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        means.append(times.astype(float) @ values / count)
    return np.concatenate(means)


def bootstrap_intervals(
    values: Mapping[str, np.ndarray], *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap interval of the mean of each array [M] (Efron, 1979)."""
    means = bootstrap_means(np.stack(list(values.values()), 1), seed=seed)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, (tail, 1 - tail), axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(values)}


def compare(
    first: Evaluation, second: Evaluation, *, seed: int = 0, permutations: int = PERMUTATIONS
) -> dict[str, PairedTest]:
    """Paired tests of every metric that is a mean over users.

    Raises:
        DataError: the two were not measured on the same cases by the same protocol.
    """
    _check_comparable(first, second)
    return _paired(first.per_user, second.per_user, seed, permutations)


def compare_kinds(
    first: Evaluation, second: Evaluation, *, seed: int = 0, permutations: int = PERMUTATIONS
) -> dict[str, dict[str, PairedTest]]:
    """Paired tests, as of :func:`compare`, of the targets of each kind of event, by its name.

    Empty where one of the two knows no kinds, or other ones.

    Raises:
        DataError: as of :func:`compare`.
    """
    _check_comparable(first, second)
    if not _same_kinds(first, second):
        return {}
    theirs = second.per_user_by_kind
    return {
        kind: _paired(ours, theirs[kind], seed, permutations)
        for kind, ours in first.per_user_by_kind.items()
    }


def _same_kinds(first: Evaluation, second: Evaluation) -> bool:
    ours, theirs = _target_kinds(first), _target_kinds(second)
    if ours is None or theirs is None or first.protocol.kinds != second.protocol.kinds:
        return False
    return np.array_equal(ours, theirs)


def _target_kinds(evaluation: Evaluation) -> np.ndarray | None:
    """Targets and their kinds, [2, P]; None where they are not known."""
    if evaluation.kinds is None or evaluation.of_kinds is None:
        return None
    return np.stack((evaluation.of_kinds, evaluation.kinds))


def compare_segments(
    first: Evaluation,
    second: Evaluation,
    *,
    names: Collection[str] | None = None,
    most: int | None = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> dict[str, dict[str, dict[str, PairedTest]]]:
    """Paired tests, as of :func:`compare`, of the users by each value of a column, by column.

    The columns are those that either evaluation was made with: the users are the same.

    Args:
        names: of the metrics that are tested; None tests all.
        most: of each column only so many values, those of most users; None tests all.

    Raises:
        DataError: as of :func:`compare`.
    """
    _check_comparable(first, second)
    columns = {one.column: one for one in (*second.segments, *first.segments)}
    return {
        column: {
            value: _paired(_of(first, users, names), _of(second, users, names), seed, permutations)
            for value, users in islice(segments.by_size(), most)
        }
        for column, segments in columns.items()
    }


def _of(
    evaluation: Evaluation, users: np.ndarray, names: Collection[str] | None
) -> dict[str, np.ndarray]:
    """Some of the metrics of some of the users, by their numbers."""
    return {
        name: values[users]
        for name, values in evaluation.per_user.items()
        if names is None or name in names
    }


def _paired(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], seed: int, permutations: int
) -> dict[str, PairedTest]:
    """Tests of every metric that both have, each [U] of the same users."""
    names = [name for name in first if name in second]
    differences = np.stack([first[name] - second[name] for name in names], 1)
    p_values = sign_flip(differences, seed=seed, permutations=permutations)
    columns = {name: differences[:, i] for i, name in enumerate(names)}
    intervals = bootstrap_intervals(columns, seed=seed)
    return {
        name: PairedTest(
            metric=name,
            first=float(first[name].mean()),
            second=float(second[name].mean()),
            difference=float(columns[name].mean()),
            low=intervals[name][0],
            high=intervals[name][1],
            p_permutation=float(p_values[i]),
            p_wilcoxon=_wilcoxon(columns[name]),
            effect_size=_effect_size(columns[name]),
            users=len(differences),
        )
        for i, name in enumerate(names)
    }


def sign_flip(
    differences: np.ndarray, *, seed: int = 0, permutations: int = PERMUTATIONS
) -> np.ndarray:
    """Two-sided p-values [C] of paired differences [M, C] against signs drawn at random.

    The smallest possible value is 1 / (permutations + 1) (Phipson and Smyth, 2010).
    """
    moved = differences[np.any(differences != 0, axis=1)]
    if len(moved) == 0:
        return np.ones(differences.shape[1])
    observed = np.abs(moved.sum(0))
    # A sum that is equal but for rounding counts as reached.
    reached_from = observed - 1e-9 * np.abs(moved).sum(0)
    rng = np.random.default_rng(seed)
    at_once, reached = max(1, DRAWN_AT_ONCE // len(moved)), np.zeros(differences.shape[1])
    for begin in range(0, permutations, at_once):
        shape = (min(at_once, permutations - begin), len(moved))
        bits = np.unpackbits(rng.integers(0, 256, -(-shape[0] * shape[1] // 8), dtype=np.uint8))
        signs = bits[: shape[0] * shape[1]].reshape(shape) * 2.0 - 1.0
        reached += (np.abs(signs @ moved) >= reached_from).sum(0)
    return (1 + reached) / (1 + permutations)


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values [n] corrected for being n tests together (Holm, 1979)."""
    order = np.argsort(p_values, kind="stable")
    steps = p_values[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected


def _wilcoxon(differences: np.ndarray) -> float:
    if not differences.any():
        return 1.0
    from scipy.stats import wilcoxon

    result: Any = wilcoxon(differences)
    return float(result.pvalue)


def _effect_size(differences: np.ndarray) -> float:
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return float(differences.mean()) / spread if spread else 0.0


def _check_comparable(first: Evaluation, second: Evaluation) -> None:
    ours, theirs = first.protocol, second.protocol
    names = ["num_items", "fingerprint", "ranking"]
    # Sampled candidates are never seen ones, and only there does the seed change what is measured.
    names += ["label", "seed"] if ours.ranking == "uni100" else ["filter_seen"]
    for name in names:
        if getattr(ours, name) != getattr(theirs, name):
            # Why the cases differ says more than that they do.
            told = "split" if name == "fingerprint" and ours.split != theirs.split else name
            raise DataError(
                f"the two evaluations cannot be compared: {told} is {getattr(ours, told)!r} in the "
                f"first and {getattr(theirs, told)!r} in the second"
            )
    if not set(ours.ks) & set(theirs.ks):
        raise DataError(
            f"the two evaluations cannot be compared: ks are {ours.ks} in the first "
            f"and {theirs.ks} in the second"
        )
