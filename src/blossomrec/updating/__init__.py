"""The daily loop beside a server: new events in, the model up to date, judged, and in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blossomrec.registry import lazily

if TYPE_CHECKING:
    from blossomrec.updating.loop import update
    from blossomrec.updating.options import DailyOptions
    from blossomrec.updating.rollback import roll_back

__all__ = ["DailyOptions", "roll_back", "update"]

# Imported when first used: the command line answers before PyTorch is there.
__getattr__ = lazily(
    __name__,
    {
        "DailyOptions": "blossomrec.updating.options",
        "roll_back": "blossomrec.updating.rollback",
        "update": "blossomrec.updating.loop",
    },
)
