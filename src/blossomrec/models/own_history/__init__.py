"""The user's own items as candidates, mixed into the catalogue."""

from blossomrec.models.own_history.items import OwnItems
from blossomrec.models.own_history.mixture import OwnHistory

__all__ = ["OwnHistory", "OwnItems"]
