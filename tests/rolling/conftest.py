"""Logs of ten days, and one rolling evaluation that several tests look at."""

from __future__ import annotations

import pytest
from days import PERIODS, days_of_events, rich_days, small

from blossomrec.data.log import EventLog
from blossomrec.rolling import UpdateOptions, rolling


@pytest.fixture(scope="session")
def days(tmp_path_factory):
    return EventLog.prepare(days_of_events(), tmp_path_factory.mktemp("days") / "log")


@pytest.fixture(scope="session")
def rich_log(tmp_path_factory):
    events, items, users = rich_days()
    return EventLog.prepare(
        events,
        tmp_path_factory.mktemp("rich") / "log",
        items=items,
        users=users,
        kind="kind",
        context=("shop", "price"),
        weight="weight",
    )


@pytest.fixture(scope="session")
def rolled(one_thread, days, tmp_path_factory):
    """Folder and outcome of three days with all strategies. Read only."""
    folder = tmp_path_factory.mktemp("rolled") / "rolling"
    update = UpdateOptions(epochs=2)
    return folder, rolling(days, folder, small(), update=update, progress=False, **PERIODS)
