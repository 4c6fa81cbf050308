"""Sequential recommendation over whole histories with block-level fused sparse attention."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from blossomrec.attention import BlossomAttention
    from blossomrec.data.log import EventLog
    from blossomrec.recommender import BlossomRec

# Public names are imported when first used, so that the command line answers at once.
_HOMES = {
    "BlossomAttention": "blossomrec.attention",
    "BlossomRec": "blossomrec.recommender",
    "EventLog": "blossomrec.data.log",
}
__all__ = ["BlossomAttention", "BlossomRec", "EventLog", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'blossomrec' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
