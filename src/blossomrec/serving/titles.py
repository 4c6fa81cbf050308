"""Names of items, for people: a table beside the ids."""

from __future__ import annotations

import csv
from pathlib import Path

from blossomrec.errors import DataError

COLUMNS = ("item_id", "title")
LONGEST_TITLE = 200


def read_titles(path: Path) -> dict[str, str]:
    """Titles by item id, from a CSV file with the columns item_id and title.

    Raises:
        DataError: the file cannot be read, or a column is missing.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} has no column {' and no column '.join(missing)}")
            # A line may be shorter than the first.
            return {
                line["item_id"]: line["title"][:LONGEST_TITLE] for line in reader if line["title"]
            }
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
