"""Merging what was appended to a log into a new generation."""

from __future__ import annotations

import os
from pathlib import Path

from blossomrec.data.growth.grown_log import GrownLog
from blossomrec.data.growth.merge import merge
from blossomrec.data.log import LOG_FILE, LOG_FORMAT
from blossomrec.data.log_folder import LogChange, LogInUseError, changing, new_generation
from blossomrec.data.vocabulary import read_description
from blossomrec.errors import DataError
from blossomrec.files import TemporaryFolder


def compact_folder(folder: Path) -> int:
    """Merge the segments of a log into its generation; how many there were.

    Killed anywhere, it leaves the log as it was or as it is to be, which are the same events.

    Raises:
        LogInUseError: another process writes the log.
        DataError: something is missing or damaged, or the folder cannot be written.
    """
    with changing(folder) as change:
        return merge_segments(change)


def merge_segments(change: LogChange) -> int:
    """The same of a log whose lock is held."""
    log = GrownLog(change.folder, change.description)
    if log.segments:
        with change.new_generation() as places:
            merge(log, change.description, places)
    return len(log.segments)


def merge_to_read(folder: Path) -> TemporaryFolder | None:
    """Merge a log's segments in its folder or, where that cannot be written, in another one.

    Returns:
        None where it was in its folder; otherwise what holds the merged log, as ``log``.
    """
    if os.access(folder, os.W_OK):
        try:
            compact_folder(folder)
        except DataError as error:
            # Folders inside one that may be written can belong to others.
            others = isinstance(error.__cause__, PermissionError)
            if not (others or isinstance(error, LogInUseError)):
                raise
        else:
            return None
    temporary = TemporaryFolder()
    description = read_description(folder / LOG_FILE, LOG_FORMAT, "a prepared log")
    with new_generation(temporary.path / "log", description) as places:
        merge(GrownLog(folder, dict(description)), description, places)
    return temporary
