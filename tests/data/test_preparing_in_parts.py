"""Logs larger than memory: tables read in batches, events sorted in parts, on disk in between."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from blossomrec.data.log import EventLog
from blossomrec.errors import DataError
from events_in_parts import at_once

pytestmark = pytest.mark.usefixtures("without_fsync")
ROWS = 400
START = 1_700_000_000


def some_events(seed: int = 0) -> pl.DataFrame:
    """User 3 has most of the events; many are at one time, some are there twice."""
    rng = np.random.default_rng(seed)
    users = np.where(rng.random(ROWS) < 0.6, 3, rng.integers(0, 40, ROWS))
    price = np.where(rng.random(ROWS) < 0.2, np.nan, rng.random(ROWS).round(2))
    events = pl.DataFrame(
        {
            "user_id": users,
            "item_id": (rng.random(ROWS) ** 2 * 30).astype(np.int64),
            "timestamp": rng.integers(START, START + 60, ROWS),
            "what": [("buy", "view", None)[one] for one in rng.integers(0, 3, ROWS)],
            "shop": [("x", "y", "z", None)[one] for one in rng.integers(0, 4, ROWS)],
            "price": price,
            "weight": rng.random(ROWS),
        }
    )
    return events.with_columns(pl.all().gather(np.minimum(np.arange(ROWS), ROWS - 20)))


EVENTS = some_events()
ALL: dict[str, Any] = {"kind": "what", "context": ("shop", "price"), "weight": "weight"}


@pytest.fixture
def without_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def as_uuids(column: str) -> pl.Expr:
    return pl.col(column).map_elements(
        lambda one: str(uuid.UUID(int=one**9)), return_dtype=pl.String
    )


def written(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What ``log.json`` says, and all other files, both without the name of the generation."""
    told = json.loads((folder / "log.json").read_text())
    generation = told.pop("generation")
    files = {
        str(path.relative_to(folder)).replace(generation, ""): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "log.json"
    }
    return told, files


def check_same(source: Any, folder: Path, **options: Any) -> EventLog:
    """A log prepared in parts is that prepared in one, to the byte."""
    whole = EventLog.prepare(source, folder / "log", **options)
    expected = written(folder / "log")
    for rows in (23, 150):
        with at_once(rows):
            EventLog.prepare(source, folder / "log", **options)
        assert written(folder / "log") == expected
    return whole


@pytest.mark.parametrize(
    "options",
    [
        {},
        ALL | {"ties": "shuffle", "drop_duplicates": True, "merge_repeats": True},
        ALL | {"min_user_events": 6, "min_item_events": 5},
        {"min_user_events": 5, "min_item_events": 9, "merge_repeats": True},
    ],
    ids=str,
)
def test_a_log_is_the_same_to_the_byte(tmp_path, options):
    assert check_same(EVENTS, tmp_path, **options).num_users > 3
    assert not list(tmp_path.rglob("spilled"))


@pytest.mark.parametrize("kind", ["lazy", "parquet", "csv", "tsv.gz"])
def test_sources_of_every_kind(tmp_path, kind):
    if kind == "parquet":
        EVENTS.write_parquet(tmp_path / "events.parquet", row_group_size=64)
    elif kind != "lazy":
        separator = "\t" if kind == "tsv.gz" else ","
        compression = "gzip" if kind == "tsv.gz" else "uncompressed"
        EVENTS.with_columns(pl.col("price").fill_nan(None)).write_csv(
            tmp_path / f"events.{kind}", separator=separator, compression=compression
        )
    source = EVENTS.lazy() if kind == "lazy" else tmp_path / f"events.{kind}"
    check_same(source, tmp_path, **ALL)


@pytest.mark.parametrize(
    "change",
    [
        [as_uuids("user_id"), as_uuids("item_id")],
        [pl.format("u{}", "user_id").cast(pl.Categorical).alias("user_id")],
        [pl.col("item_id").cast(pl.UInt64) + 2**63],
        [pl.col("user_id").cast(pl.Float64)],
        [pl.from_epoch("timestamp").alias("timestamp")],
        [pl.from_epoch("timestamp").dt.to_string("iso").alias("timestamp")],
        [pl.col("timestamp").cast(pl.Float64) + 0.5],
        [pl.when(pl.int_range(pl.len()) == 399).then(1.5).otherwise("timestamp").cast(pl.String)],
        [pl.lit("one").alias("what"), pl.col("price").cast(pl.String)],
    ],
    ids=lambda change: str(change[0])[:40],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_ids_and_times_of_every_type(tmp_path, change):
    check_same(EVENTS.with_columns(change), tmp_path, **ALL)


def test_partitions_and_item_tables(tmp_path):
    for day in range(4):
        folder = tmp_path / "in" / f"dt=2024-01-0{day + 1}"
        folder.mkdir(parents=True)
        EVENTS[day * 100 : day * 100 + 100].write_parquet(folder / "part.parquet")
    EVENTS[:0].write_parquet(tmp_path / "in" / "dt=2024-01-04" / "empty.parquet")
    items = pl.DataFrame({"item_id": [1, 2, 99], "title": ["a", "b", "c"]})
    users = pl.DataFrame({"user_id": [3, 77], "age": [40, 50]})
    tables = {"items": items, "users": users, "min_item_events": 12}
    log = check_same(tmp_path / "in", tmp_path, timestamp="dt", **tables)
    assert log.time_unit == "microseconds" and log.item_features is not None
    # Item 99 stands in the table alone: it is no item that was dropped.
    dropped = set(EVENTS["item_id"]) - set(log.item_vocabulary.read().to_list())
    assert log.summary["dropped_items"] == len(dropped) > 0


def test_files_of_several_types_become_one(tmp_path):
    EVENTS[:100].write_parquet(tmp_path / "a.parquet")
    narrow = EVENTS[100:].with_columns(pl.col("user_id").cast(pl.Int16))
    narrow.with_columns(pl.col("timestamp").cast(pl.Float64)).write_parquet(tmp_path / "b.parquet")
    log = check_same(f"{tmp_path}/*.parquet", tmp_path)
    assert log.timestamps.dtype == np.float64


def test_two_users_and_events_that_are_all_the_same(tmp_path):
    one = {"user_id": [1, 2] * 30, "item_id": [5, 6] * 30, "timestamp": [START] * 60}
    log = check_same(pl.DataFrame(one), tmp_path, drop_duplicates=True)
    assert log.num_events == 2


def test_a_core_without_events_is_refused(tmp_path):
    with at_once(50), pytest.raises(DataError, match=r"after dropping .* has no events left"):
        EventLog.prepare(EVENTS, tmp_path / "log", min_item_events=ROWS)
    assert not (tmp_path / "log").exists()


def refused(tmp_path: Path, column: str, row: int, value: Any, kind: str, **options: Any) -> str:
    values = EVENTS[column].cast(pl.String).to_list()
    values[row - 1] = value
    bad = EVENTS.with_columns(pl.Series(column, values))
    for part in range(4):
        rows = bad[part * 100 : part * 100 + 100]
        if kind == "csv":
            rows.write_csv(tmp_path / f"{part}.csv")
        else:
            typed = rows.with_columns(pl.col(column).cast(EVENTS[column].dtype, strict=False))
            typed.write_parquet(tmp_path / f"{part}.parquet")
    with at_once(33), pytest.raises(DataError) as error:
        EventLog.prepare(f"{tmp_path}/*.{kind}", tmp_path / "log", **options)
    assert not (tmp_path / "log").exists()
    return str(error.value).removeprefix(f"{tmp_path}/")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("column", ["user_id", "item_id", "timestamp"])
def test_what_is_missing_is_refused_with_its_place(tmp_path, column, kind):
    message = refused(tmp_path, column, 271, None, kind)
    assert message.startswith(f"2.{kind}, column '{column}', row 71: None is not a")


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("timestamp", "2024-01-01", "is a datetime, but row 1 has a number"),
        ("timestamp", "soon", "is not a number, but row 1 has one"),
        ("weight", "-1", "is not a weight: it is negative"),
        ("user_id", "nan", "is not an id: it is missing"),
    ],
)
def test_text_is_refused_with_its_place(tmp_path, column, value, why):
    message = refused(tmp_path, column, 271, value, "csv", weight="weight")
    shown = "-1.0" if value == "-1" else value
    assert message.startswith(f"2.csv, column '{column}', row 71: ") and why in message
    assert shown.strip("'") in message or value in message


def test_floats_late_in_a_table_refuse_large_integers_before(tmp_path):
    values = [*range(2**53 - 5, 2**53 + 45), 0.5]
    table = pl.DataFrame({"user_id": 1, "item_id": 2, "timestamp": map(str, values)}, strict=False)
    for rows in (10, 1000):
        with at_once(rows), pytest.raises(DataError, match=r"row 6: 9007199254740992\.0 is not a"):
            EventLog.prepare(table, tmp_path / "log")


def test_a_warning_counts_the_events_of_all_batches(tmp_path):
    table = EVENTS.with_columns(pl.format("{} ", "user_id").alias("user_id"))
    count = EVENTS["user_id"].n_unique()
    with at_once(30), pytest.warns(UserWarning, match=rf"ids: {count}, events: {ROWS}\)"):
        EventLog.prepare(table, tmp_path / "log")


@pytest.mark.parametrize("at", [2, 6])
def test_a_process_killed_between_batches_or_parts_leaves_the_old_log(tmp_path, at):
    folder = tmp_path / "log"
    old = EventLog.prepare(EVENTS[:50], folder)
    EVENTS.write_parquet(tmp_path / "events.parquet")
    with at_once(100):
        expected = EventLog.prepare(tmp_path / "events.parquet", tmp_path / "other").digest
    child = KILLED.format(at=at, source=f"{tmp_path}/events.parquet", folder=str(folder))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", child], env=environment, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert list(folder.rglob("spilled"))
    assert EventLog.open(folder).digest == old.digest
    assert EventLog.prepare(tmp_path / "events.parquet", folder).digest == expected
    assert not list(folder.rglob("spilled"))
    assert all(len(list(path.iterdir())) == 1 for path in folder.iterdir() if path.is_dir())


# Dies at the n-th batch that is read or put to its part.
KILLED = """
import os, signal
from events_in_parts import at_once
from blossomrec.data.log import EventLog
from blossomrec.data.preparing.columns import TimeColumn
from blossomrec.data.preparing.parts import EventParts
seen = 0
def dying(call):
    def counted(*arguments):
        global seen
        seen += 1
        if seen == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)
    return counted
TimeColumn.add, EventParts.add = dying(TimeColumn.add), dying(EventParts.add)
with at_once(100):
    EventLog.prepare({source!r}, {folder!r})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the peak of the process")
def test_memory_does_not_follow_the_number_of_events(tmp_path):
    rng = np.random.default_rng(0)
    rows = 500_000
    columns = {"user_id": 2_000, "item_id": 3_000, "timestamp": 10**9}
    table = pl.DataFrame({name: rng.integers(0, high, rows) for name, high in columns.items()})
    table.write_parquet(tmp_path / "events.parquet", row_group_size=20_000)
    child = MEASURED.format(source=f"{tmp_path}/events.parquet", folder=f"{tmp_path}/log")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", child]
    told = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    # Of the table alone it is 11 MiB, and 80 MiB where all of it is read and sorted at a time.
    assert float(told.stdout) < 40


# Prints by how many MiB the peak of the process grows; a small log comes first for what is loaded.
MEASURED = """
import re
from pathlib import Path
import polars as pl
from events_in_parts import at_once
from blossomrec.data.log import EventLog
def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024
EventLog.prepare(pl.DataFrame({{"user_id": [1, 2], "item_id": [3, 4], "timestamp": [5, 6]}}))
Path("/proc/self/clear_refs").write_text("5")
before = peak()
with at_once(20_000):
    EventLog.prepare({source!r}, {folder!r}, min_user_events=2)
print(peak() - before)
"""


def ids_in_parts(tmp_path: Path, users: pl.Series, **options: Any) -> EventLog:
    """A log of many users, by a table and by a text file, the same in ranges of few ids."""
    rows = np.arange(len(users))
    table = pl.DataFrame({"user_id": users, "item_id": rows % 211, "timestamp": START + rows})
    table = table.sample(fraction=1.0, shuffle=True, seed=1)
    table.write_csv(tmp_path / "events.csv")
    log = None
    for source in (table, tmp_path / "events.csv"):
        log = check_same(source, tmp_path, **options)
    assert log is not None
    return log


NUMBERS = pl.int_range(1_500, eager=True)
# About 30 parts and as many ranges of ids, or 5: each range is looked for in each part.
MANY = NUMBERS[:701]


@pytest.mark.parametrize(
    ("users", "dtype"),
    [
        (MANY * 97 - 300, "Int64"),
        (MANY.cast(pl.UInt64) + 2**63 - 40, "UInt64"),
        (pl.select(pl.format("u{}", MANY)).to_series(), "String"),
        (pl.select(pl.concat_str(MANY + 5, pl.lit("0" * 30))).to_series(), "String"),
    ],
    ids=["signed", "unsigned", "text", "long numbers"],
)
def test_many_ids_are_sorted_in_ranges(tmp_path, users, dtype):
    log = ids_in_parts(tmp_path, users)
    assert log.user_vocabulary.dtype == dtype
    assert log.user_vocabulary.read().to_list() == users.sort().to_list()
    assert log.user_vocabulary.rows(users.sort()).tolist() == list(range(len(users)))


@pytest.mark.parametrize(
    ("form", "normalize", "told", "dtype"),
    [
        ("{}.0", False, "ids are floats; all are whole numbers", "Int64"),
        ("{}.0", True, None, "Int64"),
        (
            " {}",
            False,
            r"white space around them .*' 0', ' 1', ' 10', \.\.\. \(ids: 1,500",
            "String",
        ),
        ("00{}", False, None, "String"),
    ],
)
def test_spellings_of_many_ids_are_told_once(tmp_path, form, normalize, told, dtype):
    users = pl.select(pl.format(form, NUMBERS)).to_series()
    table = pl.DataFrame({"user_id": users, "item_id": NUMBERS % 9, "timestamp": NUMBERS})
    table.write_csv(tmp_path / "events.csv", quote_style="never")
    with at_once(100), warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        log = EventLog.prepare(tmp_path / "events.csv", normalize_ids=normalize)
    messages = [str(one.message) for one in found if "user_id" in str(one.message)]
    assert log.user_vocabulary.dtype == dtype
    assert len(messages) == (told is not None)
    assert all(re.search(told or "", one) for one in messages)


def test_twins_and_missing_words_are_found_far_from_each_other(tmp_path):
    numbers = [str(number) for number in range(900)]
    table = pl.DataFrame({"user_id": [*numbers, "x", "007", "+8"], "item_id": [*range(903)]})
    table.with_columns(timestamp="item_id").write_csv(tmp_path / "events.csv")
    with at_once(50), pytest.warns(UserWarning, match=r"'\+8', '007' \(ids: 2, events: 2\)"):
        EventLog.prepare(tmp_path / "events.csv")
    wrong = [*numbers[:700], "nan", *numbers[700:], "NULL"]
    table = pl.DataFrame({"user_id": wrong, "item_id": [*range(902)]})
    table.with_columns(timestamp="item_id").write_csv(tmp_path / "events.csv")
    place = r"column 'user_id', row 701: 'nan' is not an id: it is missing \(and 1 more rows\)"
    with at_once(50), pytest.raises(DataError, match=place):
        EventLog.prepare(tmp_path / "events.csv")


def test_integers_that_no_type_holds_together_are_refused():
    ids = pl.Series([*range(300), 2**64 - 1, *range(300, 400), -7], dtype=pl.Int128)
    table = pl.DataFrame({"user_id": ids, "item_id": range(402), "timestamp": range(402)})
    place = r"column 'user_id', row 402: -7 is not an id: integers over 64 bits"
    with at_once(50), pytest.raises(DataError, match=place):
        EventLog.prepare(table)
    with at_once(50):
        assert EventLog.prepare(table[:-1]).user_vocabulary.dtype == "UInt64"
