"""The arrays of a log's events, written one piece after another."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from blossomrec.data.event_arrays import EventArrays
from blossomrec.data.identity import ArrayDigest

# Events that are in memory at a time; a user with more is in memory alone.
EVENTS_AT_ONCE = 2_000_000
_COLUMNS = {"items": "items", "times": "timestamps"}


class EventFiles:
    """Files in the folder of a generation that pieces of E events are appended to.

    Args:
        folder: where they lie.
        length: E.
    """

    def __init__(self, folder: Path, length: int):
        self._folder, self._length = folder, length
        self._files: dict[str, BinaryIO] = {}
        self._digests: dict[str, ArrayDigest] = {}

    def write(self, events: EventArrays) -> None:
        """Append a piece; its users are in the order of those before."""
        for name, array in vars(events).items():
            if array is not None and name != "users":
                append_array(self._file(name, array), array)
                self._digests[name].add(array)

    def digests(self) -> dict[str, str]:
        """Of each array, by its name in :class:`EventArrays`, once all pieces are written."""
        return {name: each.hexdigest() for name, each in self._digests.items()}

    def _file(self, name: str, array: np.ndarray) -> BinaryIO:
        if name not in self._files:
            file = (self._folder / f"{_COLUMNS.get(name, name)}.npy").open("wb")
            self._files[name] = file
            shape = (self._length, *array.shape[1:])
            header = {
                "descr": np.lib.format.dtype_to_descr(array.dtype),
                "fortran_order": False,
                "shape": shape,
            }
            np.lib.format.write_array_header_1_0(file, header)
            self._digests[name] = ArrayDigest(array.dtype, shape)
        return self._files[name]

    def __enter__(self) -> EventFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()


def append_array(file: BinaryIO, array: np.ndarray) -> None:
    """Write the values of an array at the end of a file."""
    file.write(np.ascontiguousarray(array).data)
