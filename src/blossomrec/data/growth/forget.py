"""Removing users from a log, so that nothing of them is left on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from blossomrec.data.growth.grown_log import GrownLog
from blossomrec.data.growth.merge import merge
from blossomrec.data.history import shown_ids
from blossomrec.data.log import SEGMENTS, TABLES, USERS
from blossomrec.data.log_folder import changing
from blossomrec.errors import DataError, shortened


class Forgotten(NamedTuple):
    """Who was removed, and how many events there were."""

    user: int | str
    events: int


def forget_user(folder: Path, user: int | str) -> Forgotten:
    """Write a log anew without a user, as :func:`forget_users`; DataError where there is none."""
    found = forget_users(folder, [user])
    if not found:
        raise DataError(f"{folder} has no user {shortened(user)}")
    return found[0]


def forget_users(folder: Path, users: Sequence[int | str]) -> list[Forgotten]:
    """Write a log anew without those of some users that it has, and remove what was there before.

    Events, ids and what a table says of the users go, and names of kinds and categories that nobody
    else has; rows of the users after them move up. Items stay, also those nobody else had. Killed
    before the last step, the log is as it was, and after it the next one that writes the log
    sweeps. It costs the same for many users as for one; where the log has none of them, nothing is
    written.

    Raises:
        LogInUseError: another process writes the log.
        DataError: the log has nobody else, is damaged, or cannot be written; or files of before
            could not be removed.
    """
    with changing(folder) as change:
        log = GrownLog(folder, change.description)
        found = log.known(USERS, users)
        if not found:
            return []
        rows = np.array(list(found))
        forgotten = list(map(Forgotten, found.values(), log.lengths[rows].tolist()))
        named = shown_ids(list(found.values()))
        if len(found) == log.num_users:
            raise DataError(f"{folder} has no other user than {named}: remove the folder")
        with change.new_generation() as places:
            merge(log, change.description, places, rows)
        left = [path for table in TABLES for path in (folder / table).iterdir()]
        if len(left) > len(TABLES) or (folder / SEGMENTS).exists():
            raise DataError(
                f"{folder} is without the user {named}, but files of before could not be "
                f"removed from {', '.join([*TABLES, SEGMENTS])}"
            )
    return forgotten
