"""The folder of a prepared log: what may lie in it, and how a new generation takes over.

A preparing writes a generation beside the one in use: ``events/GENERATION``, ``users/GENERATION``,
``items/GENERATION``. Replacing ``log.json``, which names it, is the one step from the old log to
the new one. An append writes ``segments/SEGMENT`` and replaces ``log.json``, which names that too.
Whatever was killed before or after that step leaves folders that nothing names; the next one that
writes sweeps them.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blossomrec.data.log import (
    GENERATION,
    LOG_FILE,
    LOG_FORMAT,
    SEGMENT,
    SEGMENTS,
    SEGMENTS_FORMAT,
    TABLES,
)
from blossomrec.data.vocabulary import read_description, text
from blossomrec.errors import DataError
from blossomrec.files import exclusive, flush, flush_folder, write_json

# What a log of format 1 consists of, besides log.json.
_FIRST_FORMAT = ("offsets.npy", "items.npy", "timestamps.npy", "weights.npy")
_FIRST_VOCABULARY = {"ids.parquet", "vocabulary.json"}
# On the volumes of some file systems from the start.
_NOBODYS = {"lost+found"}


def check_replaceable(folder: Path) -> None:
    """DataError unless the folder is not there, is empty, or is a prepared log and no more."""
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir():
        raise DataError(f"{folder} is a file: give a folder to prepare the log in")
    entries = {entry.name for entry in folder.iterdir()} - _NOBODYS
    foreign = sorted(name for name in entries if not _belongs(folder / name))
    if LOG_FILE not in entries:
        # Without it, arrays may be anybody's; generations are what a killed preparing has left.
        foreign += sorted(entries.intersection(_FIRST_FORMAT))
    if foreign:
        raise DataError(
            f"{folder} is not a prepared log (it holds {', '.join(foreign[:3])}): give a new folder"
        )


def _belongs(path: Path) -> bool:
    """Whether an entry of the folder is part of a log, of whichever format."""
    if path.name in (*TABLES, SEGMENTS):
        if path.is_symlink() or not path.is_dir():
            return False
        names = {entry.name for entry in path.iterdir()}
        # Of format 1 only where log.json is there to say so.
        first = _FIRST_VOCABULARY if (path.parent / LOG_FILE).is_file() else set()
        form = SEGMENT if path.name == SEGMENTS else GENERATION
        return all(form.fullmatch(name) for name in names - first)
    return path.name in (LOG_FILE, f".{LOG_FILE}.tmp", *_FIRST_FORMAT)


@contextlib.contextmanager
def new_generation(folder: Path, description: dict[str, Any]) -> Iterator[dict[str, Path]]:
    """Give the folders, by table, to write a new generation in; at the end it is the log.

    Args:
        description: what ``log.json`` is to say by then; the name of the generation is added.

    Raises:
        DataError: the folder cannot be written, or another process is writing it; what it holds
            is what it held before.
    """
    made = [path for path in (folder, *folder.absolute().parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            yield from _generation(folder, description)
    except OSError as error:
        _unmake(made)
        raise DataError(f"{folder} cannot be written: {error}") from error
    except BaseException:
        _unmake(made)
        raise
    for path in made:
        # Of a folder that is not ours, its owner keeps the entries.
        with contextlib.suppress(PermissionError):
            flush(path.parent)


class LogInUseError(DataError):
    """Another process writes the log."""


class LogChange:
    """A prepared log whose lock is held.

    Attributes:
        folder: of the log.
        description: what its ``log.json`` says; changed, it is what the next one says.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.description = read_description(folder / LOG_FILE, LOG_FORMAT, "a prepared log")

    def new_generation(self) -> contextlib.AbstractContextManager[dict[str, Path]]:
        """Give the folders, by table, to write a generation in; at the end it is the log."""
        return contextlib.contextmanager(_generation)(self.folder, self.description)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give a folder for what is needed meanwhile; should the process be killed, the next one
        removes it."""
        place = self.folder / SEGMENTS / f"segment-{secrets.token_hex(8)}"
        place.mkdir(parents=True)
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    @contextlib.contextmanager
    def new_segment(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Give a folder to write a segment in, and what is to be told of it; at the end it is
        part of the log."""
        told: dict[str, Any] = {"name": f"segment-{secrets.token_hex(8)}"}
        place = self.folder / SEGMENTS / told["name"]
        place.mkdir(parents=True)
        yield place, told
        flush_folder(place)
        flush(place.parent)
        flush(self.folder)
        self.description["format"] = SEGMENTS_FORMAT
        self.description.setdefault("segments", []).append(told)
        write_json(self.folder / LOG_FILE, self.description)


@contextlib.contextmanager
def changing(folder: Path) -> Iterator[LogChange]:
    """Hold the lock of a prepared log, so that it can be changed.

    Raises:
        LogInUseError: another process holds it.
        DataError: it is no prepared log, or one of the first format, or cannot be written; what it
            holds is what it held before.
    """
    if not (folder / LOG_FILE).is_file():
        raise DataError(f"{folder} is not a prepared log of events: it has no {LOG_FILE}")
    try:
        with _alone(folder):
            _sweep(folder)
            try:
                change = LogChange(folder)
                if change.description["format"] == 1:
                    raise DataError(
                        f"{folder} was prepared by an earlier version: prepare it again first"
                    )
                yield change
            finally:
                _sweep(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error}") from error


def _generation(folder: Path, description: dict[str, Any]) -> Iterator[dict[str, Path]]:
    _sweep(folder)
    generation = f"generation-{secrets.token_hex(8)}"
    places = {table: folder / table / generation for table in TABLES}
    try:
        for place in places.values():
            place.mkdir(parents=True)
        yield places
        for table in TABLES:
            flush_folder(folder / table)
        description["generation"] = generation
        write_json(folder / LOG_FILE, description)
    finally:
        _sweep(folder)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with exclusive(folder):
            yield
    except BlockingIOError as error:
        raise LogInUseError(f"{folder} is being written by another process") from error


def _sweep(folder: Path) -> None:
    """Remove what ``log.json`` does not name; nothing where it cannot be read."""
    named, segments = None, set[str]()
    if (folder / LOG_FILE).exists():
        try:
            description = read_description(folder / LOG_FILE, LOG_FORMAT, "a log")
            segments = segment_names(description, folder / LOG_FILE)
        except DataError:
            return
        named = description.get("generation")
    kept = {table: ("generation-*", {named}) for table in TABLES}
    kept[SEGMENTS] = ("segment-*", segments)
    for table, (form, names) in kept.items():
        for path in list((folder / table).glob(form)):
            if path.name not in names:
                shutil.rmtree(path, ignore_errors=True)
    if named is not None:
        _remove_first_format(folder)
    for table in (*TABLES, SEGMENTS):
        # Only an empty one is removed.
        with contextlib.suppress(OSError):
            (folder / table).rmdir()


def segment_names(description: dict[str, Any], path: Path) -> set[str]:
    """Names of the segments of a description; DataError names its file where it is damaged."""
    segments = description.get("segments", [])
    if not isinstance(segments, list) or not all(isinstance(one, dict) for one in segments):
        raise DataError(f"{path} is damaged: segments is no list of segments")
    return {text(one, "name", path) for one in segments}


def _remove_first_format(folder: Path) -> None:
    paths = [folder / name for name in _FIRST_FORMAT]
    paths += [folder / table / name for table in TABLES for name in _FIRST_VOCABULARY]
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _unmake(made: list[Path]) -> None:
    for path in made:
        with contextlib.suppress(OSError):
            path.rmdir()
