"""One writer at a time: the lock of a run folder."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from blossomrec.errors import RunError

try:
    import fcntl
except ImportError:
    fcntl = None

LOCK_FILE = "lock.json"
# Of what another process wrote about itself, the most that is read and shown.
LONGEST_NOTE, LONGEST_COMMAND = 65_536, 200

_held: set[io.FileIO] = set()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``, made where it is missing, against all other writers.

    The lock is the kernel's, on ``lock.json``, which says who holds it. It ends with the process,
    however that ends: a file left behind by a killed one locks nothing. A forked child does not
    hold it. Where the file system has no locks, as some network ones, a warning says so and
    nothing is locked.

    Raises:
        RunError: another process, or another thread of this one, holds the lock; it is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = _take(folder / LOCK_FILE)
    try:
        yield
    finally:
        _release(file, folder / LOCK_FILE)


def _take(path: Path) -> io.FileIO:
    while True:
        file = io.FileIO(path, "a+")
        _held.add(file)
        try:
            _lock(file, path)
            if _is_at(file, path):
                file.truncate(0)
                file.write(json.dumps(_this_process()).encode())
                return file
        except BaseException:
            _close(file)
            raise
        # Its holder removed the file between the two calls: another one may stand there by now.
        _close(file)


def _lock(file: io.FileIO, path: Path) -> None:
    try:
        if fcntl is None:
            raise OSError("this system has no fcntl")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(
            f"{path.parent} is being written by {_holder(path)}: "
            "wait until it has ended, or choose another run folder"
        ) from None
    except OSError as error:
        warnings.warn(
            f"{path.parent} cannot be locked ({error}): let nothing else write to it", stacklevel=5
        )


def _is_at(file: io.FileIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _release(file: io.FileIO, path: Path) -> None:
    # Closed already in a forked child, which must leave the lock of its parent alone.
    if not file.closed:
        # Removed while it is still locked, and only where it is the one that is.
        if _is_at(file, path):
            path.unlink(missing_ok=True)
        _close(file)


def _close(file: io.FileIO) -> None:
    _held.discard(file)
    file.close()


def _close_all() -> None:
    for file in list(_held):
        _close(file)


if hasattr(os, "register_at_fork"):
    # The kernel's lock belongs to all copies of the open file: a child that outlives its parent
    # would go on holding it.
    os.register_at_fork(after_in_child=_close_all)


def _this_process() -> dict[str, object]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": shlex.join(sys.argv)}


def _holder(path: Path) -> str:
    """Who holds the lock, as far as the file tells."""
    try:
        with path.open("rb") as file:
            note = json.loads(file.read(LONGEST_NOTE))
        pid, host, command = int(note["pid"]), str(note["host"]), str(note["command"])
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
    plain = "".join(one if one.isprintable() else " " for one in f"{host} ({command})")
    if len(plain) > LONGEST_COMMAND:
        plain = plain[:LONGEST_COMMAND] + "...)"
    return f"process {pid} on {plain}"
