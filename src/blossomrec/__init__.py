"""Sequential recommendation over whole histories with block-level fused sparse attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blossomrec.registry import lazily

__version__ = "0.1.0"

if TYPE_CHECKING:
    from blossomrec.attention import BlossomAttention
    from blossomrec.data.log import EventLog
    from blossomrec.recommender import BlossomRec
    from blossomrec.rules import Rules
    from blossomrec.tuning.search import tune

# Public names are imported when first used, so that the command line answers at once.
_HOMES = {
    "BlossomAttention": "blossomrec.attention",
    "BlossomRec": "blossomrec.recommender",
    "EventLog": "blossomrec.data.log",
    "Rules": "blossomrec.rules",
    "tune": "blossomrec.tuning.search",
}
__all__ = ["BlossomAttention", "BlossomRec", "EventLog", "Rules", "__version__", "tune"]


__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
