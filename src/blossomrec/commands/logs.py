"""What the verbs about logs do: prepare, append, compact, forget."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from blossomrec.commands.printing import show_part
from blossomrec.data.growth.options import AppendOptions
from blossomrec.data.reading.options import PrepareOptions


def prepare(
    source: str,
    folder: Path,
    *,
    options: Annotated[
        PrepareOptions, Parameter(name="*", consume_multiple=True)
    ] = PrepareOptions(),  # noqa: B008
) -> None:
    """Read a table of events, check it, write the memory-mapped log.

    Args:
        source: .parquet, .csv, .tsv or RecBole's .inter file, or a folder or pattern of such files,
            or an address of Parquet files such as 's3://bucket/events/*.parquet'
        folder: where the prepared log goes; a prepared log that is there is replaced
    """
    from blossomrec.data.log import EventLog
    from blossomrec.data.summary import summary_table

    log = EventLog.prepare(source, folder, **vars(options))
    show_part(summary_table(log.summary))
    run = f"runs/{folder.resolve().name}"
    print("next:", shlex.join(["blossomrec", "train", str(folder), run]))


def append(
    log: Path,
    source: str,
    *,
    options: Annotated[AppendOptions, Parameter(name="*")] = AppendOptions(),  # noqa: B008
) -> None:
    """Append a table of events to a log, at the cost of what is appended.

    Args:
        log: folder that ``prepare`` wrote
        source: file, folder, pattern or address, as of ``prepare``; what was appended before
            changes nothing
    """
    from blossomrec.data.growth.append import append_events
    from blossomrec.data.growth.appended import appended_table

    show_part(appended_table(append_events(source, log, options)))


def compact(log: Path) -> None:
    """Merge what was appended to a log, as opening it does.

    Args:
        log: folder that ``prepare`` wrote
    """
    from blossomrec.data.growth.compact import compact_folder

    segments = compact_folder(log)
    print(f"merged {segments:,} appended tables" if segments else "there is nothing to merge")


def forget(log: Path, user: str) -> None:
    """Remove a user from a log, so that nothing of that user is left on disk.

    Args:
        log: folder that ``prepare`` wrote
        user: id
    """
    from blossomrec.data.growth.forget import forget_user

    forgotten = forget_user(log, user)
    print(f"removed user {forgotten.user!r} with {forgotten.events:,} events from {log}")
