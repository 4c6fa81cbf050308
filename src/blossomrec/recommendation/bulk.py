"""Recommendations for many users, written to Parquet files; a stopped job goes on where it was."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from blossomrec.files import locked, remove
from blossomrec.recommendation.bulk_progress import Silence, open_display
from blossomrec.recommendation.output import Output
from blossomrec.recommendation.ranked_users import Ranked, UserRanker


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
    output: Output,
    make_ranker: Callable[[], UserRanker],
    as_frame: Callable[[Ranked], pl.DataFrame],
    *,
    progress: bool,
) -> Written:
    """Do what of a job is not done, and join it.

    Args:
        output: where it goes; what lies there of this job is kept.
        make_ranker: gives what ranks; called only where something is left to be ranked.
        as_frame: recommendations by external ids.
        progress: show on standard error how it goes.

    Raises:
        RunError: something else lies there, or another process is writing it.
        BulkInterrupted: it was stopped by the keyboard.
    """
    output.refuse_other()
    users = len(output.job.users)
    left = [number for number, path in enumerate(output.files) if not _done(output, number, path)]
    if left or output.work.exists():
        if output.is_folder:
            output.out.mkdir(parents=True, exist_ok=True)
        with locked(output.work), open_display(progress, users) as display:
            output.describe()
            try:
                _work(output, left, make_ranker, as_frame, display)
            except KeyboardInterrupt as stop:
                done = f"{display.done:,} of {users:,} users are done"
                raise BulkInterrupted(f"stopped, {done}") from stop
            remove(output.work)
    rows = pl.scan_parquet(output.files, glob=False).select(pl.len()).collect().item()
    return Written(output.files, users, rows)


def _done(output: Output, number: int, path: Path) -> bool:
    first, last = output.job.files[number], output.job.files[number + 1]
    return output.is_whole(path, (first, last))


def _work(
    output: Output,
    left: list[int],
    make_ranker: Callable[[], UserRanker],
    as_frame: Callable[[Ranked], pl.DataFrame],
    display: Silence,
) -> None:
    job = output.job
    missing = {
        part
        for file in left
        for part in job.parts(file)
        if not output.is_whole(output.part(part), part)
    }
    display.begin(len(job.users) - sum(stop - start for start, stop in missing))
    ranker = make_ranker() if missing else None
    for file in left:
        parts = job.parts(file)
        for part in parts:
            if ranker is not None and part in missing:
                found = list[Ranked]()
                for each in ranker.ranked(job.users[slice(*part)]):
                    found.append(each)
                    display.advance(each.asked)
                output.write_part(as_frame(Ranked.join(found)), part)
        output.join(output.files[file], parts)
