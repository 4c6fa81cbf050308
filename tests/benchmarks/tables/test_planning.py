"""What each step costs, by hand, and the tables of it from lines whose answers are known."""

import re
from pathlib import Path

import numpy as np
import pytest
from markdown_cells import cells

from benchmarks.tables import (
    catalogue_tables,
    planning,
    planning_rates,
    planning_tables,
    speed_tables,
)
from benchmarks.tables.planning import Traffic
from blossomrec import EventLog
from blossomrec.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
GPU = {"hardware": "NVIDIA H200; 32 cores", "commit": "a"}
CORES = {"hardware": "AMD EPYC, 2 cores", "commit": "a"}


def scale_line(gpus, items, loss, rate, length=200):
    sizes = {"gpus": gpus, "items": items, "loss": loss, "length": length, "hidden_size": 128}
    found = {"tokens_per_rank": 1_000, "events_per_second": rate, "step_ms": 1.0}
    return {"bench": "scale", **sizes, **found, "peak_mib": 1.0, "table_mib": 1.0, **GPU}


SPEED = [
    # A picosecond for each of a thousand rows with each of a million items.
    {
        "bench": "loss", "impl": "blossomrec", "rows": 1_000, "items": 1_000_000,
        "forward_backward_ms": 1.0, **GPU,
    },
    {
        "bench": "ranking", "impl": "blossomrec", "items": 1_000_000, "dtype": "float32",
        "hidden": 128, "k": 100, "filters": False, "users_per_second": 10_000, **GPU,
    },
    {
        "bench": "encoder", "impl": "cuda", "compress": "mlp", "graph": False, "length": 512,
        "heads": 8, "head_dim": 16, "tokens": 100_000, "forward_ms": 10.0, **GPU,
    },
]  # fmt: skip
FILES = {
    "scale.jsonl": [
        scale_line(1, 1_000_000, "exact", 500_000),
        scale_line(1, 1_000_000, "exact", 1, length=4_096),
        scale_line(2, 1_000_000, "exact", 800_000),
        scale_line(1, 1_000_000, "sampled", 1_000_000),
        scale_line(2, 1_000_000, "sampled", 1_000_000),
    ],
    "speed.jsonl": SPEED,
    "data.jsonl": [
        {"bench": "prepare", "source": "integers.csv", "events": 9, "seconds": 99.0},
        {
            "bench": "prepare", "source": "integers.parquet", "events": 10_000_000,
            "seconds": 3.6, "peak_mib": 900.0, **CORES,
        },
    ],
    "growth.jsonl": [
        {"model": "other"},
        {"bench": "merge", "events": 100, "seconds": 12.0, "peak_mib": 2_000.0, **CORES},
    ],
    "bulk.jsonl": [
        {"rules": "none", "items": 100_000, "users_per_second": 1_000.0, **CORES},
        {"rules": "filter", "items": 100_000, "users_per_second": 1.0, **CORES},
    ],
    "serving.jsonl": [
        {"scenario": "mixed", "store": "redis", "throughput": 600.0},
        {"scenario": "mixed", "store": "sqlite", "throughput": 900.0},
        {"scenario": "memory", "history": 50, "kib_per_user": 1.0},
        {"scenario": "memory", "history": 200, "kib_per_user": 104.8576},
        {"scenario": "memory", "history": 2_000, "kib_per_user": 9_999.0},
    ],
    "accuracy.jsonl": [
        {
            "dataset": "beauty", "max_len": 50, "model": "Blossom", "seconds_per_epoch": 90.0,
            "epochs": 40, **CORES,
        },
        {
            "dataset": "beauty", "max_len": 50, "model": "SASRec", "seconds_per_epoch": 1.0,
            "epochs": 40, **GPU,
        },
    ],
}  # fmt: skip


@pytest.fixture
def measured(monkeypatch):
    for module in (catalogue_tables, planning_rates, planning_tables, speed_tables):
        monkeypatch.setattr(module, "read", FILES.__getitem__)


def test_an_event_costs_what_items_add_to_the_nearest_catalogue():
    measured = {1_000_000: 2e-6, 10_000_000: 21e-6}
    found = [
        planning.event_seconds(measured, 2e-12, items)
        for items in (100_000, 1_000_000, 100_000_000)
    ]
    assert [seconds for seconds, _ in found] == pytest.approx([0.2e-6, 2e-6, 201e-6])
    assert [known for _, known in found] == [False, True, False]


def test_a_service_by_hand():
    # A billion events of 3.6 microseconds; where two GPUs do 1.6 times the events, a quarter more.
    assert planning.gpu_hours(1_000_000_000, 3.6e-6, 1, 1.6) == pytest.approx(1.0)
    assert planning.gpu_hours(1_000_000_000, 3.6e-6, 4, 1.6) == pytest.approx(1.25)
    # 100 million users, 5 requests a day, three times as many at the peak: 17,361 a second.
    traffic = Traffic(active=0.1, daily=5.0, peak=3.0)
    assert planning.replicas(100_000_000, 600.0, traffic) == 29 + 1
    # Ten million of them with 104.8576 KiB each.
    assert planning.kept_gib(100_000_000, 104.8576, traffic) == pytest.approx(1_000.0)
    # 100 million items: 128 float32 five times, or four times and an int64.
    assert planning.table_mib(100_000_000, 128, "exact") == pytest.approx(256e9 / 2**20)
    assert planning.table_mib(100_000_000, 128, "sampled") == pytest.approx(205.6e9 / 2**20)
    assert planning.least_gpus(256e9 / 2**20) == 4


def test_a_log_has_as_many_bytes_as_the_plan_counts(tmp_path):
    import polars as pl

    users = np.repeat(np.arange(10), 100)
    times = np.arange(len(users))
    frame = pl.DataFrame({"user_id": users, "item_id": users % 7, "timestamp": times})
    EventLog.prepare(frame, tmp_path / "log")
    log = EventLog.open(tmp_path / "log")
    found = log.items.nbytes + log.timestamps.nbytes
    assert found == planning.EVENT_BYTES * log.num_events
    assert log.offsets.nbytes == planning.USER_BYTES * (log.num_users + 1)


def test_preparing_and_growing_beside_what_follows(measured):
    rows = cells(planning_tables.preparing())
    assert rows[0] == ["prepare 10,000,000 events", "measured", "3.6 s", "900"]
    assert rows[1] == ["merge 100 events", "measured", "12.0 s", "2,000"]
    assert rows[2] == ["prepare 1,000,000 events", "computed", "0.4 s", ""]
    assert rows[5] == ["prepare 10,000,000,000 events", "computed", "1.0 h", ""]


def test_epochs_on_processors_are_those_of_processors(measured):
    rows = cells(planning_tables.laptop())
    assert rows == [["beauty, 50: Blossom", "measured", "1.5 min", "40"]]


def test_gpu_hours_of_an_epoch(measured):
    exact, sampled = cells(planning_tables.training())[1:6:4]
    # 2 microseconds an event, 1.
    hours = ["0.00056", "0.056", "0.56", "5.6"]
    assert exact == ["1,000,000 items: exact", "measured", "2.00", *hours]
    hours = ["0.00028", "0.028", "0.28", "2.8"]
    assert sampled == ["1,000,000 items: sampled", "measured", "1.00", *hours]
    # 2 + 99 microseconds, on several GPUs; two do 1.6 times the events of one.
    assert cells(planning_tables.training())[3][1:4] == ["computed", "101.00", "0.035"]


def test_memory_of_the_item_table():
    rows = cells(planning_tables.item_table())
    assert rows[1] == ["1,000,000 items", "computed", "2.4", "1", "1.9", "1"]
    assert rows[3] == ["100,000,000 items", "computed", "238.4", "4", "191.5", "4"]


def test_lists_are_encoding_and_ranking(measured):
    rows = cells(planning_tables.bulk())
    # 10 microseconds to encode 100 events, 100 to rank a million items.
    assert rows[1][:3] == ["1,000,000 items, one GPU", "computed", "9,091"]
    assert rows[2][1:4] == ["computed", "990", "10.1 s"]
    assert rows[4][:4] == ["100,000 items, two cores", "measured", "1,000", "10.0 s"]
    assert rows[5][:4] == ["1,000,000 items, two cores", "computed", "100", "1.7 min"]
    assert len(rows) == 6


def test_replicas_and_what_they_keep(measured):
    rows = cells(planning_tables.serving())
    assert rows[0][1:5] == ["measured", "600", "1", "105 KiB a user"]
    assert rows[4][1:] == ["computed", "17,361", "30", "1,000.0 GiB", "33.33"]


def test_disk_by_hand(measured):
    rows = cells(planning_tables.storage())
    # 12 GB, 800 MB; 320 GB; 51.2 GB, four times; 10 billion rows of 28 bytes, in GiB.
    assert rows[3][2:] == ["112.50", "298.02", "47.68", "190.73", "260.77"]


def test_a_price_is_the_readers(measured, capsys):
    planning_tables.print_plan(gpu_price=3.0, machine_price=0.5)
    row = cells(capsys.readouterr().out)[1]
    # 0.01 machine-hours to prepare and two replicas all day; ten epochs at 1 microsecond an event.
    assert row[2:6] == ["0.01", "0.28", "0.031", "48"]
    assert row[6] == f"{3 * (0.2778 + 0.0306) + 0.5 * 48.01:.1f}"
    with pytest.raises(ConfigError, match="gpu_price is -1"):
        planning_tables.print_plan(gpu_price=-1.0)


def test_the_page_names_what_the_plan_assumes():
    page = " ".join((ROOT / "docs/how-to/laptop-to-cluster.md").read_text().split())
    traffic = Traffic()
    assert f"{planning.EVENTS_EACH} events a user" in page
    assert f"{planning.CARD_GIB} GiB each" in page and planning.FOR_TABLE == 0.75
    assert f"users × {traffic.daily:g} × {traffic.peak:g} / 86,400" in page
    assert f"users / {1 / traffic.active:g} × KiB a user" in page
    assert f"users × {planning.K} × {planning.RECOMMENDATION_BYTES}" in page
    assert re.search(rf"users × {planning.USER_BYTES}\b", page)
    assert f"events × {planning.EVENT_BYTES} bytes" in page
    assert f"events × {planning.SORTING_BYTES}" in page
