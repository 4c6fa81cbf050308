"""The way back to the run that was in use before."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blossomrec.errors import RunError
from blossomrec.updating.runs import Runs, line_of
from blossomrec.updating.servers import take_new_run


def roll_back(
    runs: str | Path, *, wait: float = 600.0, tell: Callable[[str], None] = print
) -> dict[str, Any]:
    """Use the run that was in use before the one that is, at once and also during an update.

    Servers are told. What trains from the run that is left is not taken; the next update begins
    with the run that is in use by then.

    Args:
        runs: folder of the runs.
        wait: seconds in which a server must answer with the run.
        tell: gets a line for each step.

    Returns:
        The line of ``updates.jsonl``.

    Raises:
        RunError: no run was in use before, or it is not there any more.

    Example:
        >>> roll_back("runs")["run"]
    """
    folder = Runs(runs)
    if not folder.folder.is_dir():
        raise RunError(f"{folder.folder} is no folder of runs")
    current = folder.current()
    _catch_up(folder, current)
    before = folder.before(current) if current else None
    if current is None or before is None:
        raise RunError(f"{folder.folder}: no run was in use before {current or 'any other'}")
    line = go_back(folder, current, before, why="told to")
    tell(f"{folder.link} leads to {before} again, not to {current}")
    for one in take_new_run(folder, before, wait):
        tell(one.told)
    return line


def go_back(
    runs: Runs, run: str, before: str, *, why: str, not_served: bool = False
) -> dict[str, Any]:
    """Use an earlier run in place of the one in use, and write a line of the history.

    Args:
        not_served: it is left since a server did not take it, and is to be offered again.

    Raises:
        RunError: the earlier one is not there, or another one is in use by now.
    """
    with runs.changing():
        if not (runs.path(before) / "model.safetensors").is_file():
            raise RunError(f"{runs.path(before)}, which was in use before, is not there any more")
        if runs.current() != run:
            raise RunError(f"{runs.link} leads to {runs.current()} by now, not to {run}")
        line = {"started": time.time(), "rolled_back": run, "used": before, "why": why}
        if not_served:
            line["not_served"] = True
        runs.use(before)
        runs.record(line)
    return line


def _catch_up(runs: Runs, current: str | None) -> None:
    """Write the line of the run in use that an update was killed before."""
    with runs.changing():
        pending = runs.pending()
        if pending is None or pending.get("run") != current or "decision" not in pending:
            return
        if all(line["started"] != pending["started"] for line in runs.history()):
            runs.record(line_of(pending, pending["decision"]))
