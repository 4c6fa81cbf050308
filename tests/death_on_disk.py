"""The end of a process in the middle of what it writes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

CALLS: tuple[tuple[Any, str], ...] = (
    (os, "replace"),
    (os, "mkdir"),
    (os, "unlink"),
    (os, "rmdir"),
    (shutil, "rmtree"),
    (np, "save"),
)
# In the names of generations and segments.
DRAWN = rb"(?<=-)[0-9a-f]{16}"


class KilledError(BaseException):
    """The end of a process, as far as the writing is concerned."""


class Death:
    """Nothing reaches the disk from the n-th call on of what changes it.

    more: modules and names of functions that count besides those of ``CALLS``.
    """

    def __init__(self, monkeypatch, at: int, more: Iterable[tuple[Any, str]] = ()):
        self.at, self.seen = at, 0
        for module, name in (*CALLS, *more):
            monkeypatch.setattr(module, name, self.counted(getattr(module, name)))

    def counted(self, call):
        def dying(*arguments, **options):
            self.seen += 1
            if self.seen > self.at:
                raise KilledError
            return call(*arguments, **options)

        return dying


def what_is_left(folder: Path) -> frozenset[tuple[str, bytes | None]]:
    """Paths in a folder and what files hold, without the names that are drawn at random.

    What comes after the death is the same wherever this is the same.
    """
    return frozenset(
        (
            re.sub(DRAWN.decode(), "", str(path.relative_to(folder))),
            re.sub(DRAWN, b"", path.read_bytes()) if path.is_file() else None,
        )
        for path in folder.rglob("*")
    )
