"""Removing a user from a log, so that nothing of the user is left on disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from blossomrec.data.growth.grown_log import GrownLog
from blossomrec.data.growth.merge import merge
from blossomrec.data.log import SEGMENTS, TABLES, USERS
from blossomrec.data.log_folder import changing
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import DataError, shortened


class Forgotten(NamedTuple):
    """Who was removed, and how many events there were."""

    user: int | str
    events: int


def forget_user(folder: Path, user: int | str) -> Forgotten:
    """Write a log anew without a user, and remove what was there before.

    Events, id and what a table says of the user go, and names of kinds and categories that nobody
    else has; rows of the users after that one move up. Items stay, also those nobody else had.
    Killed before the last step, the log is as it was, and after it the next one that writes the
    log sweeps.

    Raises:
        LogInUseError: another process writes the log.
        DataError: the log has no such user or nobody else, is damaged, or cannot be written; or
            files of before could not be removed.
    """
    with changing(folder) as change:
        log = GrownLog(folder, change.description)
        ids = log.ids(USERS)
        (row,) = Vocabulary(ids).rows([user]).tolist()
        if row < 0:
            raise DataError(f"{folder} has no user {shortened(user)}")
        if len(ids) == 1:
            raise DataError(f"{folder} has no other user than {shortened(user)}: remove the folder")
        forgotten = Forgotten(ids[row], int(log.lengths[row]))
        with change.new_generation() as places:
            merge(log, change.description, places, row)
        left = [path for table in TABLES for path in (folder / table).iterdir()]
        if len(left) > len(TABLES) or (folder / SEGMENTS).exists():
            raise DataError(
                f"{folder} is without the user {shortened(user)}, but files of before could not be "
                f"removed from {', '.join([*TABLES, SEGMENTS])}"
            )
    return forgotten
