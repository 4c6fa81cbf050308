"""What a request is answered with when it cannot be served."""

from __future__ import annotations

import json
import logging
import math
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blossomrec.serving.stores.store import EventStore

LONGEST_SHOWN = 80
RETRY_SECONDS = 1
# Of every answer that does not bring headers of these names itself.
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

# The folders that an absolute path leads through, but for those of an address of the web.
FOLDERS = re.compile(r"(?<![\w.~:/-])/(?:[^/\s'\"]+/)+")

logger = logging.getLogger("blossomrec.serving")


class Refusal(Exception):  # noqa: N818 (an answer, not a fault)
    """An answer other than success: an HTTP status, a code for programs, a message for people.

    Attributes:
        field: which part of the request is wrong, such as ``events[3].item``; None for no part.
        value: what stands there.
        place: number of the first wrong character of it, from 1; None for no character.
        id: under which the log says more; None where there is no more to say.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        value: Any = None,
        place: int | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.message, self.id = status, code, message, id
        self.field, self.value, self.headers = field, value, dict(headers or {})
        self.place = place

    def body(self) -> dict[str, Any]:
        """The JSON that is answered."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.field is not None:
            error |= {"field": self.field, "value": plain(self.value)}
        if self.place is not None:
            error["place"] = self.place
        if self.id is not None:
            error["id"] = self.id
        return {"error": error}

    def sent(self) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Body and headers of the answer."""
        body = json.dumps(self.body()).encode()
        named = {"content-type": "application/json", "content-length": str(len(body))}
        named |= SAFE_HEADERS | self.headers
        return body, [(name.lower().encode(), value.encode()) for name, value in named.items()]


def unknown_item(field: str, item: Any) -> Refusal:
    """An item that the model does not know."""
    message = f"{field} is {shown(item)}: the model does not know this item"
    return Refusal(422, "unknown_item", message, field=field, value=item)


def nothing_known(field: str, message: str, value: Any = None) -> Refusal:
    """A history of which the model knows no item."""
    return Refusal(422, "no_known_item", message, field=field, value=value)


def unknown_user(user: str) -> Refusal:
    """A user without events."""
    message = f"no events of user {shown(user)} are stored"
    return Refusal(404, "unknown_user", message, field="user_id", value=user)


def unavailable(code: str, message: str, *, passes: bool = True, details: object = None) -> Refusal:
    """The server cannot answer now; may be asked again in a moment where the reason passes.

    ``details`` are for its log alone.
    """
    number = None if details is None else logged(f"{message}: {details}")
    headers = {"Retry-After": str(RETRY_SECONDS)} if passes else {}
    return Refusal(503, code, message, id=number, headers=headers)


def of_store(error: Exception, store: EventStore) -> Exception:
    """What is answered for an error of a store."""
    if isinstance(error, store.failures):
        message = "the store of events failed"
        return unavailable("store_failed", message, passes=store.passes(error), details=error)
    return error


def fault(error: Exception, where: str) -> Refusal:
    """What is answered where this program is wrong; ``where`` it showed."""
    number = logged(f"a fault at {where}", error)
    message = "this request could not be served because of a fault of the server, which logged it"
    return Refusal(500, "internal", message, id=number)


def logged(details: str, error: Exception | None = None) -> str:
    """Log what no answer tells, with the trace of an error; gives the id that stands there."""
    number = secrets.token_hex(8)
    # Whatever a client or a store wrote, an entry stays one line.
    text = details if details.isprintable() else ascii(details)[1:-1]
    logger.error("[%s] %s", number, text, exc_info=error)
    return number


def plain(value: Any) -> Any:
    """A value as it can stand in an answer: JSON, and short."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str) and len(value) <= LONGEST_SHOWN:
        return value
    return shown(value)


def shown(value: Any) -> str:
    """A value in a message."""
    # A number beyond what Python prints cannot come out of JSON, but out of arithmetic.
    text = repr(value[:LONGEST_SHOWN] if isinstance(value, (str, list, bytes)) else value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def without_folders(text: str, run: Path | None = None) -> str:
    """A message without the folders of this machine: paths are told by their last part.

    Args:
        run: a folder of which the name alone is told, also where a file in it is named.

    Example:
        >>> without_folders("/srv/7/config.json is missing, as is /data/log", Path("/srv/7"))
        '7/config.json is missing, as is log'
    """
    if run is not None:
        places = {f"{str(one.parent).rstrip('/')}/" for one in (run.absolute(), run.resolve())}
        # One of them may lie in the other.
        for place in sorted(places, key=len, reverse=True):
            text = text.replace(place, "")
    return FOLDERS.sub("", text)
