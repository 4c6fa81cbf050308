"""Tables appended in parts: the same log as by one part, and as a table in memory tells."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from blossomrec.data.growth import append as appending
from blossomrec.data.log import EventLog
from blossomrec.data.preparing import parts
from blossomrec.errors import DataError
from events_in_parts import at_once

START = 1_700_000_000
COLUMNS = {"kind": "what", "context": ("shop", "price"), "weight": "weight"}


@pytest.fixture(autouse=True)
def without_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def events(seed: int, rows: int, *, texts: bool = False, floats: bool = False) -> pl.DataFrame:
    """Random events, user 3 with most of them, many at one time; names differ with the seed."""
    rng = np.random.default_rng(seed)

    def names(*known: str) -> pl.Series:
        drawn = rng.integers(0, len(known) + 2, rows)
        return pl.Series([(*known, f"new-{seed}", None)[one] for one in drawn])

    times = rng.integers(START, START + 60, rows) * 1.0 + (0.25 if floats else 0)
    frame = pl.DataFrame(
        {
            "user_id": np.where(rng.random(rows) < 0.5, 3, rng.integers(0, 30 + 9 * seed, rows)),
            "item_id": (rng.random(rows) ** 2 * (20 + 5 * seed)).astype(np.int64),
            "timestamp": times if floats else times.astype(np.int64),
            "what": names("buy", "view"),
            "shop": names("x", "y"),
            "price": np.where(rng.random(rows) < 0.2, np.nan, rng.random(rows).round(2)),
            "weight": rng.random(rows).round(2),
        }
    )
    # Sorted as text these ids have another order.
    return frame.with_columns(pl.col("item_id").cast(pl.String)) if texts else frame


def grown(folder: Path, rows: int, tables: list, **options) -> list:
    """Append tables to a log of the first one, in parts of so many events; what was told."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = EventLog.prepare(tables[0], folder, **COLUMNS)
        with at_once(rows):
            return [log.append(each, **options) for each in tables[1:]]


def segments(folder: Path) -> list[dict[Path, bytes]]:
    """The files of the segments, in their order."""
    told = json.loads((folder / "log.json").read_text())["segments"]
    places = [folder / "segments" / each["name"] for each in told]
    assert sorted(places) == sorted((folder / "segments").iterdir()), "something is left"
    return [
        {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        for place in places
    ]


@pytest.mark.parametrize(
    "given, rows", [("frame", 7), ("frame", 61), ("csv", 7), ("texts", 7), ("floats", 61)]
)
def test_parts_make_the_segments_of_a_whole(tmp_path, given, rows):
    texts, floats = given == "texts", given == "floats"
    tables: list = [events(0, 150, texts=texts, floats=floats)]
    tables += [events(seed, 40 * seed, floats=floats) for seed in (1, 2, 3, 9)]
    if given == "csv":
        for number, frame in enumerate(tables[1:], 1):
            tables[number] = tmp_path / f"{number}.csv"
            frame.write_csv(tables[number])
    found, wanted = (
        grown(tmp_path / "parts", rows, tables),
        grown(tmp_path / "whole", 10**6, tables),
    )
    assert found == wanted and all(each.is_new for each in found)
    assert segments(tmp_path / "parts") == segments(tmp_path / "whole")
    again = grown(tmp_path / "again", rows, [tables[0], tables[3], tables[3]])
    assert [each.is_new for each in again] == [True, False]


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_segment_holds_the_table_by_user_and_time(tmp_path, seed):
    """Against a sort of the whole table by polars."""
    tables = [events(0, 150), events(seed, 200)]
    (told,) = grown(
        tmp_path / "log",
        23,
        tables,
    )
    (place,) = (tmp_path / "log" / "segments").iterdir()
    base = EventLog.of_generation(
        tmp_path / "log", json.loads((tmp_path / "log" / "log.json").read_text())
    )
    users, items = (
        _rows(one, tables[1][name])
        for one, name in ((base.user_vocabulary, "user_id"), (base.item_vocabulary, "item_id"))
    )
    whole = (
        tables[1]
        .with_columns(user=pl.Series(users), item=pl.Series(items))
        .sort("user", "timestamp", maintain_order=True)
    )
    load = {path.stem: np.load(path) for path in place.glob("*.npy")}
    met = np.unique(users, return_counts=True)
    assert np.array_equal(load["users"], met[0]) and np.array_equal(
        np.diff(load["offsets"]), met[1]
    )
    assert np.array_equal(load["items"], whole["item"])
    assert np.array_equal(load["timestamps"], whole["timestamp"])
    assert np.array_equal(load["weights"], whole["weight"].cast(pl.Float32))
    fields = json.loads((tmp_path / "log" / "log.json").read_text())["fields"]
    kinds = [None, *fields["kinds"]]
    assert [kinds[each] for each in load["kinds"]] == whole["what"].to_list()
    shops = [None, *fields["context"][0]["names"]]
    shop, price = np.nan_to_num(load["context"], nan=0).T
    assert [shops[int(each)] for each in shop] == whole["shop"].to_list()
    assert np.array_equal(price, whole["price"].fill_nan(0).cast(pl.Float32))
    first = tables[0].group_by("user_id").agg(last=pl.col("timestamp").max())
    late = tables[1].join(first, on="user_id").filter(pl.col("timestamp") < pl.col("last"))
    assert (told.events, told.late) == (200, late.height)
    assert (told.first, told.last) == (whole["timestamp"].min(), whole["timestamp"].max())


def _rows(vocabulary, ids: pl.Series) -> np.ndarray:
    """Rows of ids, new ones in their order after those that are there."""
    rows = vocabulary.rows(ids.to_list())
    new = np.unique(ids.to_numpy()[rows < 0])
    return np.where(rows < 0, vocabulary.size + np.searchsorted(new, ids.to_numpy()), rows)


@pytest.mark.parametrize(
    ("column", "row", "value", "words"),
    [
        ("user_id", 70, "x", r"column 'user_id', row 71: 'x' is no id of a user"),
        ("item_id", 33, "1.5", r"column 'item_id', row 34: '1.5' is no id of an item"),
        ("timestamp", 58, 12.0, r"row 59: 12.0 is not a time in seconds since 1970.*\(and 1 more"),
        ("timestamp", 58, START + 0.5, r"row 59: .* is not whole, .*\(and 1 more rows\)"),
    ],
)
def test_what_is_refused_is_named_with_its_place_in_the_table(tmp_path, column, row, value, words):
    """And leaves nothing."""
    table = events(1, 99)
    kind = pl.Float64 if isinstance(value, float) else pl.String
    wrong = pl.int_range(pl.len()).is_in([row, 90])
    table = table.with_columns(
        pl.when(wrong).then(pl.lit(value)).otherwise(pl.col(column).cast(kind)).alias(column)
    )
    log = EventLog.prepare(events(0, 50), tmp_path / "log", **COLUMNS)
    before = (tmp_path / "log" / "log.json").read_bytes()
    with at_once(13), pytest.raises(DataError, match=words):
        log.append(table)
    assert (tmp_path / "log" / "log.json").read_bytes() == before
    assert not (tmp_path / "log" / "segments").exists()


def test_no_more_than_a_part_is_in_memory(tmp_path, monkeypatch):
    """All that a part is made of comes in pieces, but for a user who has more."""
    sizes = list[int]()
    add = parts.EventParts.add

    def counted(self, events):
        sizes.append(len(events.users))
        add(self, events)

    monkeypatch.setattr(parts.EventParts, "add", counted)
    told = appending._told

    def of_pieces(log, segment, key):
        sizes.extend(len(each.users) for each in segment.events)
        return told(log, segment, key)

    monkeypatch.setattr(appending, "_told", of_pieces)
    table = events(1, 600).with_columns(user_id=pl.int_range(pl.len()) % 60)
    grown(tmp_path / "log", 31, [events(0, 30), table])
    assert max(sizes) <= 31 and sum(sizes) == 30 + 3 * 600
