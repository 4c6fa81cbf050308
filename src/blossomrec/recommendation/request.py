"""What recommendations are asked for, checked and in the numbers of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from blossomrec.errors import DataError

if TYPE_CHECKING:
    from blossomrec.rules.catalogue import ItemRules


@dataclass(frozen=True)
class Request:
    """What is the same for all users who are recommended to.

    Attributes:
        k: items for each user, at most as many as the catalogue has.
        filter_viewed: leave out what is in the history.
        max_len: events of a history that the model sees, the last ones.
        moment: for which is recommended, in seconds since 1970; -1 for none.
        kind: number of the kind of event that is wanted; 0 for any.
        items: rows of the only items to choose from, int64, rising; None for the whole catalogue.
        rules: what else decides; None for nothing.
    """

    k: int
    filter_viewed: bool
    max_len: int
    moment: int = -1
    kind: int = 0
    items: np.ndarray | None = None
    rules: ItemRules | None = None

    def ruled(self, rules: ItemRules) -> Request:
        """The same by rules, whose filter leaves fewer items.

        Raises:
            DataError: it leaves none of those to choose from.
        """
        items = self.items
        if rules.allowed is not None:
            allowed = np.flatnonzero(rules.allowed)
            items = allowed if items is None else np.intersect1d(items, allowed)
            if not len(items):
                raise DataError(
                    f"filter {rules.given.filter!r} leaves none of the items to choose from"
                )
        return replace(self, items=items, rules=rules)
