"""What the client is given: ids of every kind that is one, and nothing else."""

import datetime
import math

import numpy as np
import polars as pl
import pytest
from serving_runs import Process

from blossomrec.errors import ConfigError, DataError
from blossomrec.serving import Client
from blossomrec.serving.given import as_choice, as_events, as_id, as_ids

NO_IDS = [None, math.nan, 12.0, np.float64(12), np.float32(12), True, np.True_, b"12", [12], 1 + 0j]
NO_LISTS = [
    "12",
    b"12",
    bytearray(b"12"),
    memoryview(b"12"),
    np.str_("12"),
    np.array("12"),
    np.array(12),
    12,
    None,
    {"item": 12},
]


@pytest.mark.parametrize("value", [12, np.int64(12), np.uint8(12), np.array(12)])
def test_whole_numbers_are_ids(value):
    given = as_id(value, "user")
    assert (given, type(given)) == (12, int)


@pytest.mark.parametrize("value", NO_IDS, ids=repr)
def test_other_values_are_no_ids(value):
    with pytest.raises(DataError, match=r"^user is .*: an id is a whole number or text$"):
        as_id(value, "user")
    with pytest.raises(DataError, match=r"^history\[1\] is "):
        as_ids(["a", value], "history")


def test_text_is_an_id_as_it_is():
    assert as_id(np.str_(" ä\n"), "user") == " ä\n"
    with pytest.raises(DataError, match=r"^user is '\\ud800', which is not Unicode text$"):
        as_id("\ud800", "user")


@pytest.mark.parametrize(
    "values",
    [
        (12, 5),
        range(12, 4, -7),
        iter([12, 5]),
        np.array([12, 5], np.uint16),
        np.array([12, 5], object),
        pl.Series([12, 5]),
    ],
    # Some of them are shown with their place in memory, which differs from process to process.
    ids=lambda values: type(values).__name__,
)
def test_lists_of_ids(values):
    given = as_ids(values, "history")
    assert given == [12, 5] and {type(one) for one in given} == {int}


def test_columns_of_pandas():
    pandas = pytest.importorskip("pandas")
    assert as_ids(pandas.Series([12, 5], index=[1, 0]), "history") == [12, 5]
    assert as_ids(pandas.Index(["a", "b"]), "history") == ["a", "b"]
    # A missing value makes floats of all of them.
    with pytest.raises(DataError, match=r"history\[0\] is 12\.0"):
        as_ids(pandas.Series([12, None]), "history")
    with pytest.raises(DataError, match="a list of ids is needed"):
        as_ids(pandas.DataFrame({"item_id": [12]}), "history")


@pytest.mark.parametrize(
    "values",
    [*NO_LISTS, pl.DataFrame({"item_id": [12]})],
    ids=lambda values: type(values).__name__,
)
def test_what_is_no_list_is_refused(values):
    for name, read in (("events", as_events), ("history", lambda one: as_ids(one, "history"))):
        with pytest.raises(DataError, match=f"(?s)^{name} is .*: a list of .* is needed"):
            read(values)


def test_a_set_has_no_order():
    assert sorted(as_ids({12, 5}, "exclude", ordered=False)) == [5, 12]
    for values in ({12, 5}, frozenset(), {12: 5}.keys()):
        with pytest.raises(DataError, match="history is a set, which has no order"):
            as_ids(values, "history")


def test_events():
    now = np.float32(1.5)
    given = as_events([np.int8(7), "a", {"item": np.int64(1), "timestamp": now, "key": "k"}])
    assert given == [{"item": 7}, {"item": "a"}, {"item": 1, "timestamp": 1.5, "key": "k"}]
    assert type(given[2]["timestamp"]) is float
    assert as_events([{"item": 1, "timestamp": np.int64(3)}])[0]["timestamp"] == 3
    assert as_events([{"item": 1, "timestamp": None, "key": None}])


@pytest.mark.parametrize(
    "event, words",
    [
        ({"item": 12.0}, r"events\[1\]\.item is 12\.0"),
        ({"item": 1, "timestamp": math.nan}, r"events\[1\]\.timestamp is nan"),
        ({"item": 1, "timestamp": True}, r"events\[1\]\.timestamp is True"),
        ({"item": 1, "timestamp": "1"}, r"events\[1\]\.timestamp is '1'"),
        ({"item": 1, "timestamp": datetime.datetime(2026, 1, 1)}, r"events\[1\]\.timestamp is"),
        ({"item": 1, "key": 5}, r"events\[1\]\.key is 5"),
        ({"item": 1, "kee": "5"}, r"events\[1\] has 'item', 'kee'"),
        ({}, r"events\[1\] has nothing"),
        (None, r"events\[1\] is None"),
        (["a"], r"events\[1\] is \['a'\]"),
    ],
)
def test_events_that_are_none(event, words):
    with pytest.raises(DataError, match=words):
        as_events([5, event])


def test_a_choice():
    assert as_choice(np.True_, "filter_viewed") is True and as_choice(None, "f") is None
    for value in ("no", 1, 0.0):
        with pytest.raises(DataError, match=r"filter_viewed is .*: True, False or None"):
            as_choice(value, "filter_viewed")


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.append("ben", "12"),
        lambda client: client.append(math.nan, [12]),
        lambda client: client.append("ben", {12}),
        lambda client: client.recommend(12.0),
        lambda client: client.recommend(["ben"]),
        lambda client: client.recommend("ben", 1.5),
        lambda client: client.recommend("ben", filter_viewed="no"),
        lambda client: client.recommend("ben", exclude="12"),
        lambda client: client.recommend("ben", items="12"),
        lambda client: client.recommend_history("12"),
        lambda client: client.recommend_history([12], items="12"),
        lambda client: client.similar("12"),
        lambda client: client.explain("ben", 12.0),
        lambda client: client.explain(None, 12),
        lambda client: client.explain_history("12", 12),
        lambda client: client.user(None),
        lambda client: client.user("ben", last="20&x"),
        lambda client: client.delete(math.nan),
        lambda client: client.switch("12"),
        lambda client: client.switch(on="12"),
    ],
)
def test_nothing_is_sent_of_what_is_no_request(ask):
    # Nobody listens there: whoever sent something would have no answer.
    with Client("http://127.0.0.1:9", retries=0) as client, pytest.raises(DataError):
        ask(client)


def test_values_of_other_libraries_are_those_of_python(run, item_ids, tmp_path):
    with Process(run, tmp_path / "e.sqlite") as server, Client(server.url) as client:
        numbers = np.array(item_ids[:3])
        client.append(np.int64(12), numbers)
        client.append("12", pl.Series(item_ids[3:5]))
        with pytest.raises(DataError):
            client.append("12", str(item_ids[5]))
        stored = [one["item"] for one in client.user(12)["events"]]
        assert stored == item_ids[:5]
        wanted = client.recommend_history(item_ids[:5], 4, exclude=[item_ids[9]])
        assert (
            client.recommend(12, np.int32(4), exclude={numbers.dtype.type(item_ids[9])}) == wanted
        )
        assert client.recommend_history(tuple(item_ids[:5]), 4, exclude={item_ids[9]}) == wanted
        assert client.similar(numbers, 2) == client.similar(item_ids[:3], 2)


@pytest.mark.parametrize(
    "url, token, words",
    [
        ("http://host:port", None, "url is 'http://host:port'"),
        ("http://host:99999", None, "url is"),
        ("host:80", None, "url is 'host:80'"),
        ("http://host", "", "token is empty"),
        ("http://host", "a secret\n", "position 9 of token is not printable ASCII"),
        ("http://host", "schlüssel", "position 5 of token is not printable ASCII"),
        ("http://host", " secret", "token begins or ends with a space"),
    ],
)
def test_a_client_that_could_never_ask(url, token, words):
    with pytest.raises(ConfigError, match=words) as refused:
        Client(url, token=token)
    assert not token or token.strip() not in str(refused.value)
