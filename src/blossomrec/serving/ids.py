"""The rule for ids of users, at every door."""

from __future__ import annotations

import re

LONGEST_ID = 256
REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffd]")


def check_text(text: str) -> None:
    """The rule for ids of users and for keys, wherever they come from.

    Any text of 1 to 256 code points is an id, also with joiners and spaces that cannot be seen, but
    for control characters, halves of surrogate pairs, and U+FFFD, which stands for bytes that were
    no UTF-8 and in which users would be mixed up. Ids are the same if their code points are.

    Raises:
        ValueError: it is none, and why.
    """
    if not 1 <= len(text) <= LONGEST_ID:
        raise ValueError(f"an id has 1 to {LONGEST_ID} characters, this one {len(text)}")
    refused = REFUSED.search(text)
    if refused is not None:
        raise ValueError(
            "an id has no control characters, halves of surrogate pairs or U+FFFD: "
            f"U+{ord(refused[0]):04X} is in it"
        )
