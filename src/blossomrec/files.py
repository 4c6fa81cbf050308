"""Files and folders that are wholly there or not there at all, and locks on folders."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
import uuid
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blossomrec.errors import RunError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

# Descriptions of runs and logs have some kilobytes: nobody reads a gigabyte by mistake.
LARGEST_JSON = 64 << 20
LOCK_FILE = "lock.json"
# Of what another process wrote about itself, the most that is read and shown.
LONGEST_NOTE, LONGEST_COMMAND = 65_536, 200

_held: set[io.FileIO] = set()


@contextlib.contextmanager
def replacing(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path``; what was written there replaces it at the end.

    ``shared``: other processes may be replacing it, too, so that the temporary path is of its own;
    what a killed one leaves is then nobody's.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{uuid.uuid4().hex}" if shared else ""
    temporary = path.with_name(f".{path.name}{own}.tmp")
    temporary.touch()
    mode = temporary.stat().st_mode
    try:
        yield temporary
        # Some writers make files that only their owner may read.
        temporary.chmod(mode)
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; at the end it becomes ``path``, replacing it.

    Raises:
        ValueError: the path ends without a name, as ``.`` and ``..`` do.
    """
    if path.name in ("", ".."):
        raise ValueError(f"{path} does not end with the name of a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    remove(temporary)
    temporary.mkdir()
    try:
        yield temporary
        flush_folder(temporary)
        remove(path)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write values as indented JSON, atomically."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The values of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, is nested too deeply, or is larger than ``LARGEST_JSON`` bytes.
    """
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ValueError(f"it has {size:,} bytes, more than {LARGEST_JSON:,}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def digest(path: Path) -> str:
    """SHA-256 of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Have a file, or the entries of a folder, on disk."""
    # A rename survives a power cut only when the content and the folder entry are on disk.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Have all that lies in a folder, and the folder itself, on disk."""
    for entry in folder.iterdir():
        if entry.is_dir():
            flush_folder(entry)
        else:
            flush(entry)
    flush(folder)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; it goes with the process, however that ends.

    Where the system or the file system knows no such locks, nothing is held.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            pass  # such as a network disk
        yield
    finally:
        os.close(handle)


class TemporaryFolder:
    """A folder that goes with this object, or at exit, and only in the process that made it.

    Copies of the object are the object: the folder goes with the last of them.
    """

    def __init__(self):
        self.path = Path(tempfile.mkdtemp(prefix="blossomrec-"))
        self._finalizer = weakref.finalize(self, _remove_as, os.getpid(), self.path)

    def __copy__(self) -> TemporaryFolder:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TemporaryFolder:
        return self


def _remove_as(process: int, path: Path) -> None:
    # A forked child has a copy of the object, and ends before its parent needs the folder again.
    if os.getpid() == process:
        shutil.rmtree(path, ignore_errors=True)


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
