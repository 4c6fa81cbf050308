"""Finding the columns of a table by their names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from blossomrec.errors import DataError


def find_columns(source: str, there: Sequence[Any], names: Sequence[Any]) -> list[int]:
    """Positions of the columns called ``names`` among the names ``there``.

    A name that is no text, such as a number in a pandas frame, is also found by its text. Raises
    DataError for a name that is not there, or is there more than once.
    """
    return [_find_column(source, there, name) for name in names]


def _find_column(source: str, there: Sequence[Any], name: Any) -> int:
    places = [place for place, one in enumerate(there) if type(one) is type(name) and one == name]
    places = places or [place for place, one in enumerate(there) if str(one) == str(name)]
    if len(places) == 1:
        return places[0]
    if places:
        numbers = " and ".join(str(place + 1) for place in places)
        raise DataError(
            f"{source} has the column {name!r} {len(places)} times, as columns {numbers}: "
            "it is not clear which one to read"
        )
    lower = {str(column).lower(): column for column in there}
    close = difflib.get_close_matches(str(name).lower(), list(lower), n=1, cutoff=0.4)
    hint = f"; did you mean {lower[close[0]]!r}?" if close else ""
    raise DataError(
        f"{source} has no column {name!r}: its columns are {', '.join(map(repr, there))}{hint}"
    )
