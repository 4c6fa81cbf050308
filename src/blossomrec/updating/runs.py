"""A folder of runs, one of them in use: the link to it, the history of updates, what is kept.

::

    current             a link to the run in use
    00001/ 00002/ ...   runs; what is named otherwise is nobody's business here
    updates.jsonl       a line for every update and every way back
    update.json         the update that is under way
    store/              how far the events of the server's store were taken, see ``taking``
    servers/            the servers that use ``current``, see ``serving.announced``
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blossomrec.errors import RunError
from blossomrec.files import exclusive, flush, read_json, remove, write_json, write_text

CURRENT, HISTORY, PENDING = "current", "updates.jsonl", "update.json"
RUN = re.compile(r"\d{5,}")
PATIENCE = 30.0


def line_of(state: dict[str, Any], decision: dict[str, Any]) -> dict[str, Any]:
    """The line of the history for an update under way, with what was decided of it."""
    told = {name: value for name, value in state.items() if name != "decision"}
    return told | decision | {"seconds": round(time.time() - state["started"], 1)}


class Runs:
    """The folder ``folder``, made where it is missing."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    @property
    def link(self) -> Path:
        return self.folder / CURRENT

    def current(self) -> str | None:
        """Name of the run in use; None where there is none yet.

        Raises:
            RunError: there is something that is no link to a run of the folder.
        """
        if not self.link.is_symlink():
            if self.link.exists():
                raise RunError(f"{self.link} is no link: move it away, or choose another folder")
            return None
        target = Path(os.readlink(self.link))
        name = target.name
        if (self.folder / target).resolve() != (self.folder / name).resolve():
            raise RunError(f"{self.link} leads to {target}, which is no run of {self.folder}")
        return name

    def path(self, name: str) -> Path:
        return self.folder / name

    def names(self) -> list[str]:
        """Runs that are there, the oldest first."""
        found = [one.name for one in self.folder.glob("*") if RUN.fullmatch(one.name)]
        return sorted(found, key=int)

    def next_name(self) -> str:
        """A name that no run has had."""
        had = [line["run"] for line in self.history() if line.get("run")]
        numbers = [int(name) for name in (*self.names(), *had) if RUN.fullmatch(name)]
        return f"{max(numbers, default=0) + 1:05d}"

    def history(self) -> list[dict[str, Any]]:
        """All updates so far, the oldest first.

        Raises:
            RunError: the file is damaged.
        """
        path = self.folder / HISTORY
        lines = path.read_text().splitlines() if path.is_file() else []
        try:
            found = [json.loads(line) for line in lines]
        except ValueError as error:
            raise RunError(f"{path} is damaged: {error}") from error
        if not all(isinstance(one, dict) and "started" in one for one in found):
            raise RunError(f"{path} is damaged: a line tells of no update")
        return found

    def record(self, line: dict[str, Any]) -> None:
        """Write a line of the history, while :meth:`changing`."""
        lines = [*self.history(), line]
        write_text(self.folder / HISTORY, "".join(f"{json.dumps(one)}\n" for one in lines))

    def before(self, name: str) -> str | None:
        """Name of the run that was in use before another one was taken; None for none."""
        taken = [line for line in self.history() if line.get("run") == name and line.get("taken")]
        return taken[-1].get("from") if taken else None

    def not_served(self) -> dict[str, Any] | None:
        """The line of the way back from a run that a server did not take, where nothing has come
        into use since and the run is there; None otherwise."""
        changes = [one for one in self.history() if one.get("taken") or "rolled_back" in one]
        line = changes[-1] if changes else {}
        there = line.get("not_served") and line["used"] == self.current()
        if not there or not (self.path(line["rolled_back"]) / "model.safetensors").is_file():
            return None
        return line

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold what ``current`` and the history are changed under, for a moment."""
        end = time.monotonic() + PATIENCE
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(exclusive(self.folder))
                    break
                except BlockingIOError as error:
                    if time.monotonic() > end:
                        raise RunError(f"{self.folder} is being changed by others") from error
                    time.sleep(0.05)
            yield

    def use(self, name: str) -> None:
        """Have ``current`` lead to a run, in one step."""
        temporary = self.folder / f".{CURRENT}.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(name)
        os.replace(temporary, self.link)
        flush(self.folder)

    def prune(self, keep: int) -> list[str]:
        """Remove all but the last runs, that in use and the one before it; gives their names."""
        current = self.current()
        kept = {current, self.before(current) if current else None, *self.names()[-keep:]}
        gone = [name for name in self.names() if name not in kept]
        for name in gone:
            remove(self.path(name))
        return gone

    def pending(self) -> dict[str, Any] | None:
        """The update that is under way; None for none.

        Raises:
            RunError: the file is damaged.
        """
        path = self.folder / PENDING
        if not path.is_file():
            return None
        try:
            found = read_json(path)
            kinds = type(found["taken_in"]), type(found["started"])
            if kinds != (dict, float):
                raise ValueError("a value is of a wrong type")
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path} is damaged: remove it ({error})") from error
        return found

    def write_pending(self, pending: dict[str, Any]) -> None:
        write_json(self.folder / PENDING, pending)

    def clear_pending(self) -> None:
        (self.folder / PENDING).unlink(missing_ok=True)
        flush(self.folder)
