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
    item_rows: np.ndarray,
    times: np.ndarray,
    weights: np.ndarray | None,
    num_items: int,
    more: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Counts and SHA-256 digests of the parts of a log, by the words a message has for them.

    users, items: fingerprints of the vocabularies; more: digests of what only some logs have. The
    arrays are those of ``EventLog``.
    """
    return {
        "users": len(offsets) - 1,
        "items": int(num_items),
        "events": len(item_rows),
        "user ids": users,
        "item ids": items,
        "lengths of histories": array_digest(offsets),
        "items of the events": array_digest(item_rows),
        "times": array_digest(times),
        "weights": "none" if weights is None else array_digest(weights),
        **(more or {}),
    }


def fields_identity(
    fields: EventFields, kinds: np.ndarray | None, context: np.ndarray | None
) -> dict[str, str]:
    """Digests of kinds and context together with their names, of those that are there."""
    told, digests = fields.to_dict(), {}
    for name, array in (("kinds", kinds), ("context", context)):
        if array is not None:
            names = json.dumps(told[name], sort_keys=True)
            whole = f"{array_digest(array)} {names}".encode()
            digests[f"{name} of the events"] = hashlib.sha256(whole).hexdigest()
    return digests


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
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    # Of empty arrays there is no memory to look at.
    digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()
