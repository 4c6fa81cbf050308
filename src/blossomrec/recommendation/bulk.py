"""Recommendations for many users, written to Parquet files; a stopped job goes on where it was."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from blossomrec.files import locked, remove
from blossomrec.ranks import ALONE, Ranks
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


def write_all(
    writer: PartWriter, engine: PartEngine, *, progress: bool, ranks: Ranks = ALONE
) -> Written:
    """Do what of a job is not done, and join it.

    Args:
        writer: of its parts; what lies at its output of this job is kept.
        engine: has them written.
        progress: show on standard error how it goes.
        ranks: who compute it together; all call this, rank 0 joins files and shows how it goes.

    Raises:
        RunError: something else lies there, or another process is writing it.
        BulkInterrupted: it was stopped by the keyboard.
    """
    output = writer.output
    output.refuse_other()
    # Nothing is written before all have looked.
    ranks.agree(0)
    files = enumerate(output.files)
    left = [number for number, path in files if ranks.first and not _done(output, number, path)]
    if ranks.told(bool(left) or output.work.exists()):
        if ranks.first:
            _write(left, writer, engine, progress=progress, ranks=ranks)
        else:
            _assist(writer, engine)
    users = len(output.job.users)
    rows = 0
    if ranks.first:
        rows = pl.scan_parquet(output.files, glob=False).select(pl.len()).collect().item()
    return Written(output.files, users, ranks.told(rows))


def _write(
    left: list[int], writer: PartWriter, engine: PartEngine, *, progress: bool, ranks: Ranks
) -> None:
    """Have files written, which are left by their numbers, and join them."""
    output, users = writer.output, len(writer.output.job.users)
    if output.is_folder:
        output.out.mkdir(parents=True, exist_ok=True)
    with locked(output.work), open_display(progress, users) as display:
        output.describe()
        try:
            _work(left, writer, engine, display, ranks)
        except KeyboardInterrupt as stop:
            done = f"{display.done:,} of {users:,} users are done"
            raise BulkInterrupted(f"stopped, {done}") from stop
        remove(output.work)


def _assist(writer: PartWriter, engine: PartEngine) -> None:
    """Compute what rank 0 gives of the parts, which joins them, and tells of a stop."""
    try:
        for _ in engine(writer, (), lambda users: None):
            pass
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def _done(output: Output, number: int, path: Path) -> bool:
    first, last = output.job.files[number], output.job.files[number + 1]
    return output.is_whole(path, (first, last))


def _work(
    left: list[int], writer: PartWriter, engine: PartEngine, display: Silence, ranks: Ranks
) -> None:
    output, job = writer.output, writer.output.job
    there = output.parts_there()
    missing = {file: set(job.parts(file)) - there for file in left}
    file_of = {part: file for file, parts in missing.items() for part in sorted(parts)}
    display.begin(len(job.users) - sum(stop - first for first, stop in file_of))
    for file, parts in missing.items():
        if not parts:
            output.join(output.files[file], job.parts(file))
    if file_of or not ranks.alone:
        with contextlib.closing(engine(writer, list(file_of), display.advance)) as written:
            for part in written:
                file = file_of[part]
                missing[file].remove(part)
                if not missing[file]:
                    output.join(output.files[file], job.parts(file))
