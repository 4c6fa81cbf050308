"""Where compiled code is kept: a folder of the user's cache that nobody else may write to."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path


class NotBuiltError(RuntimeError):
    """Code cannot be compiled or loaded here; the message says what is missing."""


def cache_folder(kind: str) -> Path:
    """``$XDG_CACHE_HOME/blossomrec/<kind>``, made if need be.

    Raises:
        NotBuiltError: it cannot be made, or others may write there: what lies in it will be run.
    """
    try:
        # RuntimeError: a user may have no home.
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "blossomrec" / kind
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise NotBuiltError(f"the cache folder for {kind} code cannot be made: {error}") from error
    check_owner(folder)
    return folder


def check_owner(path: Path) -> None:
    """NotBuiltError unless ``path`` is the user's own, and nobody else's to write."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise NotBuiltError(
            f"{path} is a link, belongs to another user or may be written by others "
            f"(owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}): it is not loaded"
        )


def put(path: Path, make: Callable[[Path], None]) -> None:
    """Have ``make`` write a file, then rename it into place.

    Processes that compile the same at the same time each put a whole file there.
    """
    handle, name = tempfile.mkstemp(suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        make(temporary)
        temporary.chmod(0o700)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
