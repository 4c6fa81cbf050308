"""What tells one log from another: counts, and a digest of everything that it holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

COUNTS = ("users", "items", "events", "training events", "validation cases")


def log_identity(
    users: str,
    items: str,
    offsets: np.ndarray,
    item_rows: np.ndarray,
    times: np.ndarray,
    weights: np.ndarray | None,
    num_items: int,
    features: str | None = None,
) -> dict[str, Any]:
    """Counts and SHA-256 digests of the parts of a log, by the words a message has for them.

    users, items: fingerprints of the vocabularies; features: digest of the table of items. The
    arrays are those of ``EventLog``.
    """
    return {
        "users": len(offsets) - 1,
        "items": int(num_items),
        "events": len(item_rows),
        "user ids": users,
        "item ids": items,
        "lengths of histories": _digest(offsets),
        "items of the events": _digest(item_rows),
        "times": _digest(times),
        "weights": "none" if weights is None else _digest(weights),
        **({} if features is None else {"item table": features}),
    }


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


def _digest(array: np.ndarray) -> str:
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    # Of empty arrays there is no memory to look at.
    digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()
