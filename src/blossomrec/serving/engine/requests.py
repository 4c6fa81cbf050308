"""What the thread of the model is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from blossomrec.data.history import History
from blossomrec.serving.engine.histories import UserHistory
from blossomrec.serving.engine.ranking import Choice
from blossomrec.serving.engine.version import ModelVersion


@dataclass(frozen=True)
class Request:
    """What is to be recommended.

    Attributes:
        user: whose stored history; None for one that is given.
        history: the given one; None where it is that of the user, or none is needed.
        choice: which items; the history's own are added where they are to be left out.
        filter_viewed: leave out the items of the history.
        at: the second since 1970 for which is recommended; -1 where it is not known.
    """

    user: str | None
    history: History | None
    choice: Choice
    filter_viewed: bool = True
    at: int = -1


@dataclass(eq=False)
class Job:
    """A request on its way: first its history is read, then encoded, then ranked for.

    With ``events_only`` the history is the answer, as soon as it is read.
    """

    version: ModelVersion
    request: Request
    future: Future[Any] = field(default_factory=Future)
    history: UserHistory | None = None
    read: bool = False
    events_only: bool = False


@dataclass(eq=False)
class Call:
    """Anything else that the thread of the model has to do."""

    function: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)
