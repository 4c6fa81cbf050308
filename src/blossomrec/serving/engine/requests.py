"""What the thread of the model is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from blossomrec.serving.engine.histories import UserHistory
from blossomrec.serving.engine.ranking import Choice
from blossomrec.serving.engine.release import Release


@dataclass(frozen=True)
class Question:
    """What is to be recommended.

    Attributes:
        user: whose stored history; None for one that is given.
        rows: the given history, int64 item rows.
        choice: which items; the history's own are added where they are to be left out.
        filter_viewed: leave out the items of the history.
    """

    user: str | None
    rows: np.ndarray
    choice: Choice
    filter_viewed: bool = True


@dataclass(eq=False)
class Job:
    """A question on its way: first its history is read, then encoded, then ranked for.

    With ``rows_only`` the history's rows are the answer, as soon as they are read.
    """

    release: Release
    question: Question
    future: Future[Any] = field(default_factory=Future)
    history: UserHistory | None = None
    read: bool = False
    rows_only: bool = False


@dataclass(eq=False)
class Call:
    """Anything else that the thread of the model has to do."""

    function: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)
