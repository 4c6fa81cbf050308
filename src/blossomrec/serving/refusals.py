"""What a request is answered with when it cannot be served."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blossomrec.serving.store import EventStore

LONGEST_SHOWN = 80
RETRY_SECONDS = 1

logger = logging.getLogger("blossomrec.serving")


class Refusal(Exception):  # noqa: N818 (an answer, not a fault)
    """An answer other than success: an HTTP status, a code for programs, a message for people.

    Attributes:
        field: which part of the request is wrong, such as ``events[3].item``; None for no part.
        value: what stands there.
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
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.field, self.value, self.headers = field, value, dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON that is answered."""
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.field is not None:
            error |= {"field": self.field, "value": plain(self.value)}
        return {"error": error}


def unknown_item(field: str, item: Any) -> Refusal:
    """An item that the model does not know."""
    message = f"{field} is {shown(item)}: the model does not know this item"
    return Refusal(422, "unknown_item", message, field=field, value=item)


def unknown_user(user: str) -> Refusal:
    """A user without events."""
    message = f"no events of user {shown(user)} are stored"
    return Refusal(404, "unknown_user", message, field="user_id", value=user)


def unavailable(code: str, message: str, *, passes: bool = True) -> Refusal:
    """The server cannot answer now; may be asked again in a moment where the reason passes."""
    headers = {"Retry-After": str(RETRY_SECONDS)} if passes else {}
    return Refusal(503, code, message, headers=headers)


def of_store(error: Exception, store: EventStore) -> Exception:
    """What is answered for an error of a store."""
    if isinstance(error, store.failures):
        logger.error("the store of events failed: %s", error)
        message = f"the store of events failed: {error}"
        return unavailable("store_failed", message, passes=store.passes(error))
    return error


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
