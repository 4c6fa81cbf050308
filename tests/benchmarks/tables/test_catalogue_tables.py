"""The tables of large catalogues, from lines whose answers are known."""

import pytest
from markdown_cells import cells

from benchmarks.tables import catalogue_tables


def loss_line(impl, rows, took, *, commit="b", hardware="NVIDIA H200", error=0.0024):
    return {
        "bench": "loss",
        "impl": impl,
        "rows": rows,
        "items": 50_000,
        "forward_backward_ms": took,
        "floor_ms": 2.0,
        "peak_mib": 1_234.4,
        "error": error,
        "hardware": hardware,
        "commit": commit,
    }


def step_line(form, negatives, took):
    return {
        "bench": "sampled step",
        "form": form,
        "items": 1_000_000,
        "events": 131_072,
        "negatives": negatives,
        "ms": took,
        "peak_mib": 3_834.7,
        "hardware": "NVIDIA H200",
        "commit": "b",
    }


def parts_line(took, loss, rest):
    parts = dict.fromkeys(("optimizer", "feed-forward and norms", "inputs", "other"), 0.0)
    return {
        "bench": "step parts",
        "case": "3,416 items",
        "form": "exact",
        **{"items": 3_416, "length": 200, "events": 8_192, "hidden_size": 128, "ms": took},
        "parts_ms": {"attention": 0.5, "loss": loss, **parts, "other": rest},
        **{"hardware": "NVIDIA H200", "commit": "b"},
    }


def scale_line(gpus, tokens_per_rank, rate, *, items=1_000_000):
    return {
        "bench": "scale",
        "gpus": gpus,
        "items": items,
        "length": 4_096,
        "tokens_per_rank": tokens_per_rank,
        "loss": "exact",
        "hidden_size": 128,
        "events_per_second": rate,
        "peak_mib": 9_000.2,
        "table_mib": 2_441.4 / gpus,
        "hardware": "NVIDIA H200",
        "commit": "b",
    }


LINES = [
    # Of other code, of a processor, of another benchmark.
    loss_line("blossomrec", 8_192, 9.0, commit="a"),
    loss_line("blossomrec", 8_192, 900.0, hardware="AMD"),
    {"bench": "attention", "hardware": "NVIDIA H200", "commit": "b"},
    loss_line("blossomrec", 65_536, 8.0),
    loss_line("products", 8_192, 3.0, error=None),
    loss_line("blossomrec", 8_192, 5.0),
    step_line("exact", None, 270.54),
    step_line("sampled", 8_192, 19.4),
    parts_line(9.0, 9.0, 9.0),
    parts_line(2.14, 1.0, 0.5),
]
SCALE = [
    scale_line(1, 65_536, 500_000),
    scale_line(2, 65_536, 960_000),
    scale_line(2, 32_768, 900_000, items=10_000_000),
]


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    files = {"speed.jsonl": LINES, "scale.jsonl": SCALE}
    monkeypatch.setattr(catalogue_tables, "read", files.__getitem__)


def test_the_loss_beside_its_floor_by_problem():
    rows = cells(catalogue_tables.loss())
    assert rows == [
        ["8,192 x 50,000: the three products, logits in memory", "3.00", "1.50", "1,234", ""],
        ["8,192 x 50,000: BlossomRec", "5.00", "2.50", "1,234", "0.2 %"],
        ["65,536 x 50,000: BlossomRec", "8.00", "4.00", "1,234", "0.2 %"],
    ]


def test_steps_by_loss_and_sampled_items():
    rows = cells(catalogue_tables.sampled_step())
    assert rows == [
        ["1,000,000 items, 131,072 events: exact", "", "270.5", "3,835"],
        ["1,000,000 items, 131,072 events: sampled", "8,192", "19.4", "3,835"],
    ]


def test_several_gpus_beside_one_where_one_was_measured():
    rows = cells(catalogue_tables.scale())
    of_a_million = "1,000,000 items, histories of 4,096: exact"
    assert rows == [
        [of_a_million, "1", "65,536", "0.50", "1.00", "9,000", "2,441"],
        [of_a_million, "2", "65,536", "0.96", "1.92", "9,000", "1,221"],
        [
            "10,000,000 items, histories of 4,096: exact",
            "2",
            "32,768",
            "0.90",
            "",
            "9,000",
            "1,221",
        ],
    ]


def test_a_step_by_its_parts():
    text = catalogue_tables.step_parts()
    assert "| attention | loss | optimizer | feed-forward and norms | inputs | other |" in text
    # The last line of a case counts.
    assert cells(text) == [
        [
            "3,416 items, 8,192 events of histories of 200: exact",
            *("2.1", "2.0", "25 %", "50 %", "0 %", "0 %", "0 %", "25 %"),
        ]
    ]
