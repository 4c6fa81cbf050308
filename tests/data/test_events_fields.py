"""Kinds and context of events, and tables of users: what a log is prepared with and gives back."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from blossomrec.cli import main
from blossomrec.data.event_arrays import EventArrays, shuffle_ties
from blossomrec.data.field_counts import FieldCounts
from blossomrec.data.fields import ContextField, EventFields
from blossomrec.data.identity import differences
from blossomrec.data.log import EventLog
from blossomrec.data.reading import kinds as limits
from blossomrec.data.reading.options import Filters
from blossomrec.data.summary import summary_table
from blossomrec.errors import ConfigError, DataError
from events_in_parts import filtered

NAN = float("nan")
START = 1_700_000_000
EVENTS = pl.DataFrame(
    {
        "user_id": [1, 1, 2, 2, 2, 3],
        "item_id": [5, 6, 5, 5, 7, 6],
        "timestamp": [START + second for second in range(6)],
        "what": ["buy", "view", "view", None, "view", "buy"],
        "shop_id": [3, 3, 4, None, 3, 3],
        "price": [1.5, None, 2.5, NAN, 3.0, 1.0],
        "gift": [True, False, None, True, True, True],
    }
)
USERS = pl.DataFrame(
    {
        "user_id": [2, 9, 1],
        "age": [40, 50, None],
        "interests": ["art|food", "art", ""],
        "taste": [[0.5, 1.0], [0.0, 0.0], None],
    }
)
COLUMNS: dict[str, Any] = {"kind": "what", "context": ("shop_id", "price", "gift")}


def prepared(frame: Any = EVENTS, folder: Any = None, **options: Any) -> Any:
    return EventLog.prepare(frame, folder, **COLUMNS | options)


def text_of(log: EventLog, width: int = 120) -> str:
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(summary_table(log.summary))
    return console.export_text()


class TestLog:
    def test_names_come_in_falling_order_of_events_then_of_name(self):
        log = prepared()
        shop, price, gift = log.fields.context
        assert log.fields.kinds == ("view", "buy")
        assert (shop.name, shop.kind, shop.names) == ("shop_id", "category", ("3", "4"))
        assert (gift.kind, gift.names) == ("category", ("true", "false"))
        assert price.kind == "number"
        assert (price.mean, price.deviation) == (2.0, pytest.approx(np.std([1.5, 2.5, 3, 1])))
        tied = prepared(EVENTS.with_columns(what=pl.Series(["b", "a", "b", "a", "c", "d"])))
        assert tied.fields.kinds == ("a", "b", "c", "d")

    def test_arrays_are_mapped_and_say_what_is_not_known(self):
        log = prepared()
        assert isinstance(log.kinds, np.memmap) and isinstance(log.context, np.memmap)
        assert (log.kinds.dtype, log.context.dtype) == (np.int32, np.float32)
        assert log.kinds.tolist() == [2, 1, 1, 0, 1, 2]
        wanted = [[1, 1.5, 1], [1, NAN, 2], [2, 2.5, NAN], [NAN, NAN, 1], [1, 3, 1], [1, 1, 1]]
        np.testing.assert_array_equal(log.context, np.array(wanted, np.float32))

    def test_columns_are_what_models_see(self):
        log = prepared(users=USERS)
        columns = log.columns(["kinds", "asked_kinds", "context", "users"])
        rows = np.array([0, 3, 4])
        assert columns["kinds"][rows].tolist() == [2, 0, 1]
        assert columns["asked_kinds"][rows].tolist() == [1, 1, 2]
        assert columns["users"][np.arange(6)].tolist() == [0, 0, 1, 1, 1, 2]
        assert columns["users"][1:4].tolist() == [0, 1, 1]
        for name in ("kinds", "asked_kinds", "users"):
            assert columns[name][rows].dtype == np.int64
        assert columns["context"].shape == (6, 3)

    def test_a_history_has_all_that_the_log_knows(self):
        history = prepared(users=USERS).history(1)
        assert sorted(history.columns()) == ["context", "items", "kinds", "times", "users"]
        assert history.kinds is not None and history.kinds.tolist() == [1, 0, 1]
        assert history.users is not None and history.users.tolist() == [1, 1, 1]
        assert history.context is not None and history.context.shape == (3, 3)
        assert history.times is not None and (history.times - START).tolist() == [2, 3, 4]

    def test_a_log_without_them_has_no_fields(self):
        log = EventLog.prepare(EVENTS)
        assert log.fields == EventFields()
        assert log.kinds is log.context is log.user_features is None
        for name in ("kinds", "asked_kinds", "context", "users"):
            with pytest.raises(DataError, match=f"has no {name} that a model can see: it was prep"):
                log.columns([name])
        assert list(log.history(0).columns()) == ["items", "times"]

    def test_filters_come_before_names_are_numbered_and_numbers_measured(self):
        log = prepared(min_user_events=2)
        # The user who went had one of the two purchases, and a price.
        assert log.summary["kinds"] == {"view": 3, "buy": 1}
        assert log.fields.context[1].mean == pytest.approx((1.5 + 2.5 + 3) / 3)
        odd = EVENTS.with_columns(what=pl.Series(["a", "a", "b", "b", "b", "rare"]))
        assert prepared(odd, min_user_events=2).fields.kinds == ("b", "a")

    def test_equal_numbers_have_deviation_1(self):
        same = EVENTS.with_columns(price=pl.lit(0.1))
        price = prepared(same).fields.context[1]
        assert (price.mean, price.deviation) == (pytest.approx(0.1), 1.0)

    def test_the_summary_tells_of_all_columns(self):
        text = text_of(prepared(users=USERS))
        for label, value in {
            "kind: view": "3 events",
            "kind: buy": "2 events",
            "kind is not known": "1 events",
            "context: shop_id": "category (2), known of 83.3%",
            "context: price": "number (mean 2, deviation 0.7906), known of 66.7%",
            "users: age": "number, known of 33.3%",
            "users: interests": "category (2), known of 33.3%",
            "users: taste": "vector (2), known of 33.3%",
        }.items():
            assert re.search(rf"{re.escape(label)} +│ +{re.escape(value)} ", text), label

    def test_many_kinds_are_summed_up(self):
        many = (
            EVENTS.head(1)
            .select(pl.all().repeat_by(15).explode())
            .with_columns(
                what=pl.Series([f"k{n}" for n in range(15)]),
                user_id=pl.Series([n % 2 for n in range(15)]),
                item_id=pl.Series(range(15)),
            )
        )
        assert re.search(r"more kinds +│ +5 ", text_of(prepared(many)))

    def test_square_brackets_in_names_are_printed_as_they_are(self):
        renamed = EVENTS.rename({"price": "x[/red]"}).with_columns(
            what=pl.col("what").replace("buy", "[bold]buy")
        )
        options = COLUMNS | {"context": ("x[/red]",), "users": USERS.rename({"age": "age[/]"})}
        text = text_of(EventLog.prepare(renamed, **options))
        for label in ("kind: [bold]buy", "context: x[/red]", "users: age[/]"):
            assert f"│ {label} " in text


class TestIdentity:
    def test_without_fields_it_is_as_it_always_was(self):
        parts = {"users", "items", "events", "user ids", "item ids", "lengths of histories"}
        parts |= {"items of the events", "times", "weights"}
        assert set(EventLog.prepare(EVENTS).identity) == parts
        more = {"kinds of the events", "context of the events", "user table"}
        assert set(prepared(users=USERS).identity) == parts | more

    @pytest.mark.parametrize(
        ("changed", "part"),
        [
            ({"what": pl.col("what").replace("buy", "cart")}, "kinds of the events"),
            ({"shop_id": pl.col("shop_id") + 1}, "context of the events"),
            ({"price": pl.col("price") + 1}, "context of the events"),
        ],
    )
    def test_names_and_values_count(self, changed, part):
        other = prepared(EVENTS.with_columns(**changed))
        assert differences(prepared().identity, other.identity) == part

    def test_the_table_of_users_counts(self):
        older = USERS.with_columns(pl.col("age") + 1)
        first, second = (prepared(users=table).identity for table in (USERS, older))
        assert differences(first, second) == "user table"

    def test_the_same_table_makes_the_same_log(self):
        assert prepared(users=USERS).digest == prepared(EVENTS[::-1], users=USERS[::-1]).digest

    def test_a_pickled_log_is_opened_again(self, tmp_path):
        log = prepared(folder=tmp_path / "log", users=USERS)
        again = pickle.loads(pickle.dumps(log))
        assert again.digest == log.digest and again.fields == log.fields
        np.testing.assert_array_equal(again.context, log.context)
        assert again.user_features.digest == log.user_features.digest
        prepared(folder=tmp_path / "log")
        with pytest.raises(DataError, match="has changed since"):
            pickle.loads(pickle.dumps(log))
        # What is open stays as it was.
        assert log.kinds.tolist() == [2, 1, 1, 0, 1, 2]


class TestFolder:
    def test_a_log_of_before_there_were_fields_is_read(self, tmp_path):
        EventLog.prepare(EVENTS, tmp_path / "log")
        path = tmp_path / "log" / "log.json"
        description = json.loads(path.read_text())
        for name in ("fields", "user_table"):
            del description[name]
        for name in ("kinds", "events_of_unknown_kind", "context", "user_table"):
            del description["summary"][name]
        path.write_text(json.dumps(description))
        log = EventLog.open(tmp_path / "log")
        assert log.fields == EventFields() and log.user_features is None
        text_of(log)

    @pytest.mark.parametrize("name", ["kinds", "context"])
    def test_a_damaged_array_is_named(self, tmp_path, name):
        prepared(folder=tmp_path / "log")
        (path,) = (tmp_path / "log" / "events").glob(f"*/{name}.npy")
        np.save(path, np.zeros(6, np.float64))
        with pytest.raises(DataError, match=rf"{name}.npy is damaged: it holds float64 \[6\]"):
            EventLog.open(tmp_path / "log")
        path.unlink()
        with pytest.raises(DataError, match=rf"{name}.npy is missing"):
            EventLog.open(tmp_path / "log")

    def test_damaged_fields_are_named(self, tmp_path):
        prepared(folder=tmp_path / "log")
        path = tmp_path / "log" / "log.json"
        description = json.loads(path.read_text())
        path.write_text(json.dumps(description | {"fields": {"kinds": [1]}}))
        with pytest.raises(DataError, match=r"log.json is damaged: its fields"):
            EventLog.open(tmp_path / "log")

    def test_prepared_again_without_them_nothing_is_left(self, tmp_path):
        prepared(folder=tmp_path / "log", users=USERS)
        EventLog.prepare(EVENTS, tmp_path / "log")
        names = {path.name for path in (tmp_path / "log").rglob("*")}
        assert not names & {"kinds.npy", "context.npy", "features"}


class TestUsers:
    def test_rows_are_those_of_the_users_with_events(self):
        log = prepared(users=USERS)
        table: Any = log.user_features
        assert log.num_users == table.num_rows == 3
        np.testing.assert_array_equal(table["age"].values, np.array([NAN, 40, NAN], np.float32))
        assert [table["interests"][row] for row in range(3)] == [[], ["art", "food"], []]
        assert table["taste"].values.shape == (3, 2)

    def test_kinds_of_columns_can_be_given(self):
        log = prepared(users=USERS, user_kinds=("age=category", "taste=none"))
        table: Any = log.user_features
        assert table["age"][1] == ["40"] and "taste" not in table

    def test_other_names_of_columns_and_files_do(self, tmp_path):
        USERS.select(pl.col("user_id").alias("uid:token"), "age").write_csv(
            tmp_path / "u.user", separator="\t"
        )
        log = EventLog.prepare(
            EVENTS.rename({"user_id": "uid"}), user="uid", users=tmp_path / "u.user"
        )
        assert log.user_features is not None and list(log.user_features) == ["age"]

    def test_a_table_of_others_is_refused(self):
        with pytest.raises(DataError, match=r"'user_id': none of its 3 ids, such as 102, is that"):
            prepared(users=USERS.with_columns(pl.col("user_id") + 100))
        with pytest.raises(DataError, match=r"row 1: 'x' is no id of a user: .* are integers"):
            prepared(users=pl.DataFrame({"user_id": ["x", "1"], "age": [1, 2]}))

    def test_faults_of_the_table_are_named(self):
        wrong = USERS.with_columns(age=pl.Series([1.0, float("inf"), 2.0]))
        with pytest.raises(DataError, match=r"column 'age', row 2: inf is not finite"):
            prepared(users=wrong)
        with pytest.raises(ConfigError, match="no column 'aeg'"):
            prepared(users=USERS, user_kinds=("aeg=number",))


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "kinds that are numbers": (
        {"what": [0.5, 1.0, 1.0, 2.0, 2.0, 2.0]},
        r"column 'what', row 1: 0.5 is not a kind: it is not a whole number",
    ),
    "kinds that are lists": (
        {"what": [["a"]] * 6},
        r"column 'what', row 1: .* is of type List\(String\): texts, integers or booleans",
    ),
    "no kind": ({"what": [None, "", " ", None, None, None]}, r"'what': there is no kind in it"),
    "a column of nulls": ({"what": [None] * 6}, r"column 'what': there is no kind in it"),
    "infinite": (
        {"price": [1.0, 2.0, float("inf"), 2.0, 1.0, -float("inf")]},
        r"column 'price', row 3: inf is not finite in 32 bits \(and 1 more rows\)",
    ),
    "too large": ({"price": [1.0, 1e39, 1, 1, 1, 1]}, r"column 'price', row 2: 1e\+39 is not fin"),
    "no number": ({"price": [None, NAN, NAN, NAN, NAN, NAN]}, r"'price': there is no number in"),
    "no category": ({"gift": [None] * 6}, r"column 'gift': there is no category in it"),
    "vectors": ({"price": [[1.0]] * 6}, r"column 'price', row 1: .* is of type List\(Float64\)"),
    "floats as ids": (
        {"shop_id": [1.0, 2.0, 2.5, 1.0, 1.0, 1.0]},
        r"column 'shop_id', row 3: 2.5 is not a category: it is not a whole number",
    ),
}


def test_whole_decimals_of_text_files_are_integers(tmp_path):
    """As pandas writes integers with gaps: the names are those of a frame."""
    frame = EVENTS.with_columns(
        what=pl.Series([1.0, 2.0, None, 1.0, 1.0, 10.0]), shop_id=pl.col("shop_id").cast(pl.Float64)
    )
    frame.write_csv(tmp_path / "events.csv")
    assert "1.0" in (tmp_path / "events.csv").read_text()
    fields = prepared(tmp_path / "events.csv").fields
    assert fields.kinds == ("1", "10", "2")
    assert fields.context[0] == prepared(frame).fields.context[0]
    for others in ([1.5, 2.0, 1.0, 1.0, 1.0, 1.0], ["1.0", "x", "1", "1", "1", "1"]):
        frame.with_columns(what=pl.Series(others)).write_csv(tmp_path / "events.csv")
        assert "1.0" in prepared(tmp_path / "events.csv").fields.kinds


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_they_are_named_with_their_place_and_nothing_is_written(self, tmp_path, fault):
        columns, message = FAULTS[fault]
        given = {name: pl.Series(values, strict=False) for name, values in columns.items()}
        with pytest.raises(DataError, match=message):
            prepared(EVENTS.with_columns(**given), tmp_path / "log")
        assert not (tmp_path / "log").exists()

    def test_a_fault_leaves_the_log_that_was_there(self, tmp_path):
        before = prepared(folder=tmp_path / "log").digest
        with pytest.raises(DataError):
            prepared(EVENTS.with_columns(gift=pl.lit(None)), tmp_path / "log")
        assert EventLog.open(tmp_path / "log").digest == before
        assert len(list((tmp_path / "log" / "events").iterdir())) == 1

    def test_too_many_names_are_refused(self, monkeypatch):
        monkeypatch.setattr(limits, "MAX_KINDS", 1)
        with pytest.raises(
            DataError, match=r"'what', row 2: 'view' is one kind too many: there may be up to 1"
        ):
            prepared()
        monkeypatch.setattr(limits, "MAX_KINDS", 2)
        monkeypatch.setattr(limits, "MAX_NAMES", 1)
        with pytest.raises(DataError, match=r"'shop_id', row 3: 4 is one category too many"):
            prepared()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kind": "item_id"}, "'item_id' is item_id and kind"),
            ({"kind": "gift"}, "'gift' is kind and context gift"),
            ({"weight": "price"}, "'price' is weight and context price"),
            ({"context": ("timestamp",)}, "'timestamp' is timestamp and context timestamp"),
        ],
    )
    def test_a_column_is_one_thing(self, options, message):
        with pytest.raises(DataError, match=f"one column is given for two things: {message}"):
            prepared(**options)

    def test_columns_that_are_not_there_are_told_with_what_was_meant(self):
        with pytest.raises(DataError, match=r"no column 'waht': .* did you mean 'what'\?"):
            prepared(kind="waht")
        with pytest.raises(DataError, match=r"no column 'prize': .* did you mean 'price'\?"):
            prepared(context=("prize",))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"context": ("gift", "price", "gift")}, "context has 'gift' twice"),
            ({"context": "price"}, "context is 'price': a list is needed"),
            ({"context_kinds": ("what=category",)}, "context has no column 'what'"),
            ({"context_kinds": ("price=vector",)}, "KIND is one of category, number"),
            ({"context_kinds": ("price",)}, "'price' is not COLUMN=KIND"),
        ],
    )
    def test_wrong_options_are_refused(self, options, message):
        with pytest.raises(ConfigError, match=message):
            prepared(**options)


class TestSources:
    @pytest.mark.parametrize("suffix", ["csv", "tsv", "inter", "parquet"])
    def test_files_give_what_frames_give(self, tmp_path, suffix):
        path = tmp_path / f"events.{suffix}"
        # Text knows no other missing value than an empty field.
        frame = EVENTS.with_columns(pl.col("price").fill_nan(None))
        if suffix == "parquet":
            frame.write_parquet(path)
        else:
            floats = {name for name, dtype in frame.schema.items() if dtype.is_float()}
            typed = frame.rename(
                {name: f"{name}:{'float' if name in floats else 'token'}" for name in frame.columns}
            )
            separator = "," if suffix == "csv" else "\t"
            (typed if suffix == "inter" else frame).write_csv(path, separator=separator)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            log = prepared(path)
        assert log.fields == prepared().fields
        assert log.digest == prepared().digest

    def test_the_command_line_takes_several_columns(self, tmp_path, capsys):
        EVENTS.write_parquet(tmp_path / "events.parquet")
        USERS.write_parquet(tmp_path / "users.parquet")
        words = "--kind what --context shop_id price --context gift --context-kinds gift=category"
        words += " shop_id=number --user-kinds age=category taste=none --users"
        arguments = ["prepare", str(tmp_path / "events.parquet"), str(tmp_path / "log")]
        assert main([*arguments, *words.split(), str(tmp_path / "users.parquet")]) == 0
        assert "kind: view" in capsys.readouterr().out
        log = EventLog.open(tmp_path / "log")
        assert [each.kind for each in log.fields.context] == ["number", "number", "category"]
        assert log.user_features is not None and list(log.user_features) == ["age", "interests"]
        assert main([*arguments, "--context", "what", "--kind", "what"]) == 2
        assert "'what' is kind and context what" in capsys.readouterr().err
        assert EventLog.open(tmp_path / "log").digest == log.digest

    def test_pandas_gives_the_same(self):
        pandas = pytest.importorskip("pandas")
        columns = EVENTS.to_dict(as_series=False)
        # Integers with gaps are floats there, booleans and text with gaps are objects.
        frame = pandas.DataFrame(columns)
        assert str(frame["shop_id"].dtype) == "float64"
        assert prepared(frame).digest == prepared().digest
        whole = frame.assign(
            shop_id=frame["shop_id"].astype("Int64"), what=frame["what"].astype("category")
        )
        assert prepared(whole).digest == prepared().digest

    def test_kinds_may_be_numbers_and_booleans(self):
        assert prepared(kind="gift", context=("price",)).fields.kinds == ("true", "false")
        assert prepared(kind="shop_id", context=("price",)).fields.kinds == ("3", "4")

    def test_what_a_column_is_can_be_given(self):
        log = prepared(context_kinds=("shop_id=number", "gift=number"))
        assert [each.kind for each in log.fields.context] == ["number"] * 3
        np.testing.assert_array_equal(
            np.asarray(log.context)[:, 2], np.array([1, 0, NAN, 1, 1, 1], np.float32)
        )
        hours = EVENTS.with_columns(hour=pl.Series([1, 2, 1, 2, 3, 1]))
        log = prepared(hours, context=("hour",), context_kinds=("hour=category",))
        assert log.fields.context[0].names == ("1", "2", "3")

    def test_text_is_a_category_even_if_no_value_repeats(self):
        place = pl.Series(["a|b", "title", " c ", "d", "e", "f"])
        log = prepared(EVENTS.with_columns(place=place), context=("place",))
        assert log.fields.context[0].names == ("a|b", "c", "d", "e", "f", "title")

    def test_few_texts_among_numbers_are_told_of(self, tmp_path):
        path = tmp_path / "events.csv"
        prices = pl.Series(["1.5", "2", "n/a", None, "3", "4"])
        EVENTS.with_columns(price=prices).write_csv(path)
        with pytest.warns(UserWarning, match=r"'price', row 3: 'n/a' is no number, as 80.0%"):
            log = prepared(path)
        assert log.fields.context[1].kind == "category"
        with pytest.raises(DataError, match=r"'price', row 3: 'n/a' is not a number"):
            prepared(path, context_kinds=("price=number",))

    def test_values_are_told_to_a_model_as_they_stand_in_the_table(self):
        fields = prepared().fields
        for given in ({"shop_id": 4}, {"shop_id": "4"}, {"shop_id": 4.0}):
            assert fields.row(given)[0] == 2
        assert fields.row({"gift": True})[2] == fields.row({"gift": "true"})[2] == 1
        assert fields.unknown(None, {"gift": False, "shop_id": 3}) == ""
        assert fields.unknown(None, {"shop_id": 5}) == "context 'shop_id' with 5"


def arrays(rows: list[tuple[int, int, int, int]]) -> EventArrays:
    """Events of (user, item, time, kind); their context is their position."""
    users, items, times, kinds = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    context = np.arange(len(rows), dtype=np.float32)[:, None]
    return EventArrays(users, items, times.astype(np.int64), None, kinds, context)


def with_ranked_names(events: EventArrays, fields: EventFields) -> tuple[EventArrays, EventFields]:
    counts = FieldCounts(fields)
    counts.add(events)
    named, renumbered = counts.without_unused(ranked=True)
    return renumbered(events), named


class TestArrays:
    def test_kinds_and_context_go_along(self):
        mixed = arrays([(1, 5, 3, 1), (0, 4, 2, 2), (1, 6, 1, 3), (0, 4, 1, 4)])
        ordered = mixed.sorted()
        assert ordered.kinds is not None and ordered.kinds.tolist() == [4, 2, 3, 1]
        assert ordered.context is not None and ordered.context[:, 0].tolist() == [3, 1, 2, 0]
        rows = np.arange(10, dtype=np.int32)
        assert ordered.renumbered(rows, rows).kinds is ordered.kinds

    def test_duplicates_have_the_same_kind(self):
        events = arrays([(0, 4, 1, 1), (0, 4, 1, 2), (0, 4, 1, 1), (0, 4, 2, 1)])
        kept, _ = filtered(events, Filters(drop_duplicates=True))
        assert kept.context is not None and kept.context[:, 0].tolist() == [0, 1, 3]

    def test_repeats_have_the_same_kind(self):
        events = arrays([(0, 4, 1, 1), (0, 4, 2, 1), (0, 4, 3, 2), (0, 4, 4, 1), (1, 4, 5, 1)])
        kept, _ = filtered(events, Filters(merge_repeats=True))
        assert kept.context is not None and kept.context[:, 0].tolist() == [0, 2, 3, 4]

    def test_the_order_of_ties_depends_on_what_events_are(self):
        rows = [(0, item, 7, kind) for item in range(20) for kind in (1, 2)]
        events = arrays(rows)
        shuffled = shuffle_ties(events)
        assert shuffled.kinds is not None and shuffled.context is not None
        places = shuffled.context[:, 0].astype(int)
        assert (events.items[places] == shuffled.items).all()
        other = shuffle_ties(arrays(rows[::-1]))
        assert other.kinds is not None
        assert (other.items == shuffled.items).all() and (other.kinds == shuffled.kinds).all()
        # Which kind comes first is not told by its number either.
        first = [shuffled.kinds[shuffled.items == item][0] for item in range(20)]
        assert set(first) == {1, 2}

    def test_names_without_events_are_left_out(self):
        events = arrays([(0, 4, 1, 3), (0, 5, 2, 3), (1, 4, 1, 1)])
        fields = EventFields(("a", "b", "c"), (ContextField("n", "category", ("x", "y", "z")),))
        ranked, named = with_ranked_names(events, fields)
        assert named.kinds == ("c", "a")
        assert ranked.kinds is not None and ranked.kinds.tolist() == [1, 1, 2]
        assert named.context[0].names == ("x", "y")
        assert ranked.context is not None and ranked.context[:, 0].tolist() == [0, 1, 2]
        unknown = EventArrays(**vars(events) | {"kinds": np.zeros(3, np.int32)})
        assert with_ranked_names(unknown, fields)[0].kinds is None
