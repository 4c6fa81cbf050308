"""Recommendations for many users, written to Parquet files; a stopped job goes on where it was."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from blossomrec.files import locked, remove
from blossomrec.recommendation.bulk_progress import Silence, open_display
from blossomrec.recommendation.output import Output
from blossomrec.recommendation.part_engines import PartEngine
from blossomrec.recommendation.parts import PartWriter


@dataclass(frozen=True)
class Written:
    """What ``recommend_all`` wrote.

    Attributes:
        files: Parquet files with the columns user_id, item_id, score and rank.
        users: who was asked for.
        rows: recommendations in all files.
    """

    files: list[Path]
    users: int
    rows: int


class BulkInterrupted(KeyboardInterrupt):
    """A job was told to stop; the same call goes on. ``command`` is empty for the same command."""

    command = ""
    signum = signal.SIGINT


def write_all(writer: PartWriter, engine: PartEngine, *, progress: bool) -> Written:
    """Do what of a job is not done, and join it.

    Args:
        writer: of its parts; what lies at its output of this job is kept.
        engine: has them written.
        progress: show on standard error how it goes.

    Raises:
        RunError: something else lies there, or another process is writing it.
        BulkInterrupted: it was stopped by the keyboard.
    """
    output = writer.output
    output.refuse_other()
    users = len(output.job.users)
    left = [number for number, path in enumerate(output.files) if not _done(output, number, path)]
    if left or output.work.exists():
        if output.is_folder:
            output.out.mkdir(parents=True, exist_ok=True)
        with locked(output.work), open_display(progress, users) as display:
            output.describe()
            try:
                _work(left, writer, engine, display)
            except KeyboardInterrupt as stop:
                done = f"{display.done:,} of {users:,} users are done"
                raise BulkInterrupted(f"stopped, {done}") from stop
            remove(output.work)
    rows = pl.scan_parquet(output.files, glob=False).select(pl.len()).collect().item()
    return Written(output.files, users, rows)


def _done(output: Output, number: int, path: Path) -> bool:
    first, last = output.job.files[number], output.job.files[number + 1]
    return output.is_whole(path, (first, last))


def _work(left: list[int], writer: PartWriter, engine: PartEngine, display: Silence) -> None:
    output, job = writer.output, writer.output.job
    there = output.parts_there()
    missing = {file: set(job.parts(file)) - there for file in left}
    file_of = {part: file for file, parts in missing.items() for part in sorted(parts)}
    display.begin(len(job.users) - sum(stop - first for first, stop in file_of))
    for file, parts in missing.items():
        if not parts:
            output.join(output.files[file], job.parts(file))
    if file_of:
        with contextlib.closing(engine(writer, list(file_of), display.advance)) as written:
            for part in written:
                file = file_of[part]
                missing[file].remove(part)
                if not missing[file]:
                    output.join(output.files[file], job.parts(file))
