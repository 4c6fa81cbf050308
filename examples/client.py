"""A client of a server: append events, recommend, explain, forget.

    blossomrec serve RUN &
    python examples/client.py http://127.0.0.1:8000 ITEM ITEM ...

Items are ids of the catalogue that the run was trained on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from blossomrec.serving.client import Client


def main(url: str, items: Sequence[int | str], user: str = "anna") -> None:
    with Client(url) as client:
        # With a key, an event that is sent twice is stored once.
        events = [{"item": item, "key": f"visit {number}"} for number, item in enumerate(items)]
        print("stored:", client.append(user, events))
        found = client.recommend(user, k=3)
        print("recommended:", found)
        print("deleted:", client.delete(user), "events")


if __name__ == "__main__":
    url, *texts = sys.argv[1:]
    main(url, [int(text) if text.isdecimal() else text for text in texts])
