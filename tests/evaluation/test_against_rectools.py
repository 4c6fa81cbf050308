"""Metrics of lists beside those of RecTools, an independent library that users may have."""

import numpy as np
import pytest

import list_oracle
from blossomrec.config import EvaluationConfig
from blossomrec.data.split import make_split
from blossomrec.measure import evaluate_baseline

metrics = pytest.importorskip(
    "rectools.metrics", reason="compares with RecTools: pip install rectools"
)
pd = pytest.importorskip("pandas")
distances = pytest.importorskip("rectools.metrics.distances")
KS = (2, 5, 10)
NAMES = (
    "novelty",
    "serendipity",
    "diversity:maker_name",
    "diversity:genre",
    "diversity:vector",
)


class CosineDistance(distances.PairwiseDistanceCalculator):
    """One minus the cosine of the vectors of two items; NaN where one is not known."""

    def __init__(self, vectors):
        self.vectors = [np.full(1, np.nan) if one is None else np.array(one) for one in vectors]

    def _get_distances_for_item_pairs(self, items_0, items_1):
        return np.array([self._distance(*pair) for pair in zip(items_0, items_1, strict=True)])

    def _distance(self, one, other):
        first, second = self.vectors[one], self.vectors[other]
        if np.isnan(first).any() or np.isnan(second).any():
            return np.nan
        return 1 - first @ second / np.linalg.norm(first) / np.linalg.norm(second)


@pytest.fixture(scope="module")
def log():
    rng = np.random.default_rng(8)
    histories = [rng.integers(0, 60, length).tolist() for length in rng.integers(3, 30, 60)]
    return list_oracle.log_with_tables([list(range(60)), *histories])


@pytest.fixture(scope="module")
def measured(log):
    options = {"own_metrics": NAMES, "filter_seen": "yes", "ks": KS}
    return {name: evaluate_baseline(name, log, **options) for name in ("transitions", "popularity")}


def frame(lists):
    """Recommendations as RecTools takes them."""
    rows = [
        (user, item, rank)
        for user, items in enumerate(lists)
        for rank, item in enumerate(items.tolist(), 1)
        if item >= 0
    ]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "rank"])


def interactions(log, ends, starts=None):
    rows = [
        (user, item)
        for user, end in enumerate(ends)
        for item in log.history(user).items[(0 if starts is None else starts[user]) : end].tolist()
    ]
    return pd.DataFrame(rows, columns=["user_id", "item_id"])


def test_novelty(log, measured):
    train = interactions(log, make_split(log, EvaluationConfig()).train_end)
    found = measured["transitions"]
    for k in KS:
        theirs = metrics.MeanInvUserFreq(k=k).calc_per_user(frame(found.top), train)
        assert found.per_user[f"novelty@{k}"] == pytest.approx(theirs.sort_index().to_numpy())


def test_serendipity_is_the_precision_of_what_popularity_does_not_recommend(log, measured):
    ends = np.diff(log.offsets)
    targets, found = interactions(log, ends, ends - 1), measured["transitions"]
    surprising = False
    for k in KS:
        popular = frame(measured["popularity"].top[:, :k])[["user_id", "item_id"]]
        both = targets.merge(popular, how="left", indicator=True)
        unexpected = both[both["_merge"] == "left_only"][["user_id", "item_id"]]
        theirs = metrics.Precision(k=k).calc_per_user(frame(found.top), unexpected)
        ours = found.per_user[f"serendipity@{k}"]
        # RecTools leaves out users without a target.
        assert ours[theirs.index] == pytest.approx(theirs.to_numpy())
        assert ours.sum() == pytest.approx(theirs.sum())
        surprising = surprising or ours.any()
    assert surprising


@pytest.mark.filterwarnings("ignore:Some items has absent feature values")
def test_diversity(log, measured):
    found, rows = measured["transitions"], range(log.num_items)
    table = log.item_features
    makers = [table["maker_name"][row] for row in rows]
    numbers = pd.DataFrame({"maker": [{"north": 0, "south": 1}.get("".join(m)) for m in makers]})
    vectors = [
        one if np.isfinite(one).all() and one.any() else None for one in table["vector"].values
    ]
    calculators = {
        "diversity:maker_name": distances.PairwiseHammingDistanceCalculator(numbers),
        "diversity:genre": CosineDistance(list_oracle.one_hot([table["genre"][r] for r in rows])),
        "diversity:vector": CosineDistance(vectors),
    }
    for name, calculator in calculators.items():
        for k in KS:
            metric = metrics.IntraListDiversity(k=k, distance_calculator=calculator)
            theirs = metric.calc_per_user(frame(found.top)).sort_index()
            assert found.per_user[f"{name}@{k}"] == pytest.approx(
                theirs.fillna(0).to_numpy(), abs=1e-6
            )


def test_coverage(log, measured):
    for found in measured.values():
        for k in KS:
            metric = metrics.CatalogCoverage(k=k, normalize=True)
            theirs = metric.calc(frame(found.top), catalog=range(log.num_items))
            assert found.metrics[f"coverage@{k}"] == pytest.approx(theirs)
