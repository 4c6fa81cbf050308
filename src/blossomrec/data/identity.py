"""What a log is, in counts and digests, so that it is known again and changes are named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from blossomrec.data.fields import EventFields

COUNTS = ("users", "items", "events", "training events", "validation cases")


def log_identity(
    users: str,
    items: str,
    offsets: np.ndarray,
    digests: Mapping[str, str],
    num_items: int,
    more: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Counts and SHA-256 digests of the parts of a log, by the words a message has for them.

    users, items: fingerprints of the vocabularies; offsets: of ``EventLog``; digests: of its arrays
    ``items``, ``times`` and, if there are any, ``weights``; more: of what only some logs have.
    """
    return {
        "users": len(offsets) - 1,
        "items": int(num_items),
        "events": int(offsets[-1]),
        "user ids": users,
        "item ids": items,
        "lengths of histories": array_digest(offsets),
        "items of the events": digests["items"],
        "times": digests["times"],
        "weights": digests.get("weights", "none"),
        **(more or {}),
    }


def fields_identity(fields: EventFields, digests: Mapping[str, str]) -> dict[str, str]:
    """Digests of kinds and context together with their names, of those that are there.

    digests: of the arrays ``kinds`` and ``context``.
    """
    told, whole = fields.to_dict(), {}
    for name in ("kinds", "context"):
        if name in digests:
            names = json.dumps(told[name], sort_keys=True)
            both = f"{digests[name]} {names}".encode()
            whole[f"{name} of the events"] = hashlib.sha256(both).hexdigest()
    return whole


def identity_digest(identity: Mapping[str, Any]) -> str:
    """One digest of a whole identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def differences(known: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """In what two identities differ, in words; empty where they agree in all that both tell.

    Counts are told with both values: they say more than the digests that differ with them.
    """
    differing = [name for name in given if name in known and known[name] != given[name]]
    counts = [name for name in differing if name in COUNTS]
    told = [f"{name}: {known[name]}, now {given[name]}" for name in counts]
    told += [name for name in differing if name not in COUNTS]
    return ", ".join(told)


def array_digest(array: np.ndarray) -> str:
    """SHA-256 of the type, shape and values of an array, the same on every machine."""
    whole = ArrayDigest(array.dtype, array.shape)
    whole.add(array)
    return whole.hexdigest()


def array_digests(**arrays: np.ndarray | None) -> dict[str, str]:
    """The same of several, by name, without those that are None."""
    return {name: array_digest(each) for name, each in arrays.items() if each is not None}


class ArrayDigest:
    """The digest of an array that comes in pieces, one after another along its first axis."""

    def __init__(self, dtype: np.dtype, shape: tuple[int, ...]):
        self._dtype = dtype.newbyteorder("<")
        self._digest = hashlib.sha256(f"{self._dtype.str} {shape}\n".encode())

    def add(self, piece: np.ndarray) -> None:
        """Take in the next piece."""
        piece = np.ascontiguousarray(piece, dtype=self._dtype)
        # Of empty arrays there is no memory to look at.
        self._digest.update(piece.data.cast("B") if piece.size else b"")

    def hexdigest(self) -> str:
        """The digest of all pieces."""
        return self._digest.hexdigest()
