"""Columns of the users' and the items' tables in reports and tables: how many, and as they are."""

from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from blossomrec.data.log import EventLog
from blossomrec.evaluation import compare, compare_segments
from blossomrec.evaluation.evaluation import evaluation_path, save_evaluation
from blossomrec.measure import evaluate_baseline
from blossomrec.recommender import BlossomRec
from blossomrec.report import wording
from blossomrec.report.report import write_run_report
from blossomrec.report.tables import (
    comparison_of_models,
    comparison_table,
    evaluation_table,
    frame_table,
)
from small_options import SMALL

pytestmark = pytest.mark.usefixtures("one_thread")

# As many values of the users' column, and of each as many users as its number says.
VALUES = wording.MOST_SEGMENTS + 3
USERS_COLUMN, ITEMS_COLUMN = "plan[bold]", "maker[/red]"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    rng = np.random.default_rng(4)
    plans = [f"plan {number:02}" for number in range(1, VALUES + 1) for _ in range(number)]
    events = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(len(plans)), 4),
            "item_id": rng.integers(0, 30, 4 * len(plans)),
            "timestamp": np.arange(4 * len(plans)),
        }
    )
    items = pl.DataFrame({"item_id": range(30), ITEMS_COLUMN: ["north", "south"] * 15})
    users = pl.DataFrame({"user_id": range(len(plans)), USERS_COLUMN: plans})
    folder = tmp_path_factory.mktemp("segments") / "log"
    kinds = {"item_kinds": [f"{ITEMS_COLUMN}=category"], "user_kinds": [f"{USERS_COLUMN}=category"]}
    return EventLog.prepare(events, folder, items=items, users=users, **kinds)


@pytest.fixture(scope="module")
def measured(log):
    asked = {"own_metrics": [f"diversity:{ITEMS_COLUMN}"], "segments": [USERS_COLUMN]}
    return [evaluate_baseline(name, log, **asked) for name in ("popularity", "transitions")]


def test_a_report_shows_so_many_segments_those_of_most_users(log, measured, tmp_path):
    runs = [tmp_path / "popularity", tmp_path / "run"]
    trained = BlossomRec(**SMALL).fit(log, runs[1], progress=False)
    for run, evaluation in zip(runs, (measured[0], trained.evaluate()), strict=True):
        save_evaluation(evaluation, evaluation_path(run))
    assert len(measured[0].segment_slices[USERS_COLUMN]) == VALUES
    write_run_report(runs, tmp_path / "page.html", title="Page")
    page = (tmp_path / "page.html").read_text()
    caption = f"By {USERS_COLUMN} of the user, the {wording.MOST_SEGMENTS} values with most users"
    table = page[page.index(caption) :].partition("</table>")[0]
    shown = re.findall(r'<th scope="row">\s*(plan \d+)', table)
    assert shown == [f"plan {number:02}" for number in range(VALUES, 3, -1)]
    assert len(shown) == wording.MOST_SEGMENTS


def printed(renderable):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_square_brackets_in_names_are_printed_as_they_are(measured):
    first, second = measured
    metric = f"diversity:{ITEMS_COLUMN}@10"
    tests, by_segment = compare(first, second), compare_segments(first, second, most=2)
    assert metric in tests
    for table in (
        evaluation_table("one", first),
        comparison_table("one", "two", tests, first.protocol, None, by_segment),
    ):
        lines = printed(table).splitlines()
        assert any(line.startswith(f"│ {metric} ") or f" {metric} " in line for line in lines)
        # The title, and the head of the table of the column.
        assert sum(USERS_COLUMN in line for line in lines) == 2
    models = printed(comparison_of_models({"runs/[bold]one": first, "[/red]two": second}))
    assert "runs/[bold]one" in models and "[/red]two" in models
    assert "a[bold]" in printed(frame_table(pl.DataFrame({"a[bold]": ["[/red]"]})))
