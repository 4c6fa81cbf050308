import numpy as np
import pytest

import list_oracle
from blossomrec.errors import ConfigError
from blossomrec.evaluation import compare, compare_segments
from blossomrec.evaluation.segments import Segments, by_segment
from blossomrec.measure import evaluate_baseline


@pytest.fixture(scope="module")
def log():
    """80 users, of whom a table has a country of most, one or two tags and an age."""
    rng = np.random.default_rng(5)
    histories = [rng.integers(0, 30, length).tolist() for length in rng.integers(2, 15, 80)]
    return list_oracle.log_with_tables([list(range(30)), *histories])


def test_every_value_has_the_users_who_have_it(log):
    found = evaluate_baseline("popularity", log, segments=["country", "tags"])
    users = np.unique(found.users)
    assert len(users) < log.num_users
    for column in ("country", "tags"):
        slices = {part.value: part for part in found.segment_slices[column]}
        names = [log.user_features[column][user] or ["unknown"] for user in users]
        assert set(slices) == {name for each in names for name in each}
        for value, part in slices.items():
            inside = [value in each for each in names]
            assert part.users == sum(inside)
            for metric, values in found.per_user.items():
                assert part.metrics[metric] == pytest.approx(values[inside].mean())
                low, high = part.intervals[metric]
                # Means of equal values differ by how they are summed.
                assert low - 1e-12 <= part.metrics[metric] <= high + 1e-12
        sizes = [part.users for part in found.segment_slices[column]]
        assert sizes == sorted(sizes, reverse=True)
    assert any(part.few for part in found.segment_slices["country"])


def test_segments_by_hand():
    segments = Segments("country", ("de", "fr"), np.array([1, 0, 1, 1]), np.array([0, 1, 1, 2]))
    french, german = by_segment(segments, {"hr@1": np.array([1.0, 0.0, 0.5])})
    assert (french.label, french.users, french.metrics) == ("fr", 3, {"hr@1": 0.5})
    assert (german.label, german.users, german.intervals) == ("de", 1, {"hr@1": (0.0, 0.0)})


def test_unknown_users_are_told_from_those_of_that_name(log, monkeypatch):
    country = log.user_features["country"]
    monkeypatch.setattr(type(country.names), "__getitem__", lambda names, row: "unknown")
    segments = Segments.of(log, "country", np.arange(log.num_users))
    assert segments.names[-2:] == ("unknown", "(unknown)")


def test_a_sampled_ranking_has_segments(log):
    found = evaluate_baseline("popularity", log, ranking="uni100", segments=["country"])
    for part in found.segment_slices["country"]:
        assert part.metrics.keys() == found.metrics.keys()


def test_models_are_compared_by_segment(log):
    first = evaluate_baseline("transitions", log, segments=["tags"])
    second = evaluate_baseline("popularity", log)
    found = compare_segments(first, second)
    assert found.keys() == compare_segments(second, first).keys() == {"tags"}
    whole = compare(first, second)
    for part in first.segment_slices["tags"]:
        tests = found["tags"][part.value]
        assert tests.keys() == whole.keys()
        assert tests["ndcg@10"].users == part.users
        assert tests["ndcg@10"].first == pytest.approx(part.metrics["ndcg@10"])
    assert compare_segments(second, second) == {}
    some = compare_segments(first, second, names=("mrr@5",), most=1)
    largest = first.segment_slices["tags"][0].value
    assert list(some["tags"]) == [largest] and list(some["tags"][largest]) == ["mrr@5"]
    test, expected = some["tags"][largest]["mrr@5"], found["tags"][largest]["mrr@5"]
    assert (test.difference, test.users) == (expected.difference, expected.users)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["land"], "segments is 'land', no column of .*: choose one of country, tags"),
        (["age"], "'age', a column of kind number; .*--user-kinds age=category: choose one of"),
        ("country", "segments is 'country': a list of columns"),
        ([3], "segments is 3, no column"),
    ],
)
def test_wrong_columns_are_named(log, columns, message):
    with pytest.raises(ConfigError, match=message):
        evaluate_baseline("popularity", log, segments=columns)
