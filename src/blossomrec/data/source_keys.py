"""What tells one table of events from others, so that each is taken into a log once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blossomrec.data.fields import EventFields
from blossomrec.data.id_arrays import IdArrays
from blossomrec.data.reading.addresses import located
from blossomrec.data.reading.files import SourceDigests, SourceFiles
from blossomrec.data.reading.options import ReadOptions


def file_keys(source: Any, options: ReadOptions) -> SourceDigests:
    """Digests of the content of a source's files; of a frame or an address None, and no files."""
    if isinstance(source, (str, Path)):
        return SourceFiles(located(source), options).digests()
    return SourceDigests(None, {})


def content_key(ids: Sequence[IdArrays], digests: Mapping[str, str], fields: EventFields) -> str:
    """A digest of events by user, then time.

    Args:
        ids: of users and of items, each sorted.
        digests: of the arrays of the events, with positions in those, in order of ``EventArrays``.
        fields: names of the kinds and categories of the events, each sorted.
    """
    digest = hashlib.sha256(json.dumps(fields.to_dict()).encode())
    for one in ids:
        digest.update(one.fingerprint().encode())
    for name, each in digests.items():
        digest.update(f"{name} {each}\n".encode())
    return digest.hexdigest()
