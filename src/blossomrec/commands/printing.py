"""Prints what verbs find."""

from __future__ import annotations

import json
import sys
from typing import Any

from blossomrec.terminal import console, show


def show_part(part: Any) -> None:
    """Print a table or another part of an answer."""
    show(console(), part)


def show_frame(frame: Any, *, as_json: bool) -> None:
    """Print recommendations as a table or as JSON, which is valid in every encoding."""
    from blossomrec.report.tables import frame_table

    if not as_json:
        return show_part(frame_table(frame))
    text = frame.write_json()
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(json.loads(text))
    print(text)
