"""Explanations beside the thread of the model."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from blossomrec.data.history import History
from blossomrec.errors import ConfigError
from blossomrec.explanation.answer import explained
from blossomrec.explanation.explain import check_explainable
from blossomrec.serving.refusals import Refusal, unavailable
from blossomrec.serving.stores.store import ItemId
from blossomrec.serving.version.histories import window_start
from blossomrec.serving.version.version import ModelVersion

# Explanations that may wait: each takes as long as many recommendations.
MOST_WAITING = 16


class Explainer:
    """Computes explanations in a thread of its own, so that recommendations do not wait for them.

    One thread (that of the event loop) asks.

    Args:
        threads: of PyTorch, for one operation; None leaves its own number.
    """

    def __init__(self, threads: int | None):
        prepare = None if threads is None else lambda: torch.set_num_threads(threads)
        self._pool = ThreadPoolExecutor(1, "explanations", initializer=prepare)
        self._open: set[Future[Any]] = set()

    def explain(self, version: ModelVersion, history: History, item: int, k: int) -> Future[Any]:
        """What is answered to a request for an explanation; see :class:`schemas.Explained`.

        Args:
            history: the whole of it, at least one event.
            item: row of the item.
            k: events to name.

        Raises:
            Refusal: 503, too many wait.
        """
        self._open = {future for future in self._open if not future.done()}
        if len(self._open) >= MOST_WAITING:
            raise unavailable("overloaded", f"{MOST_WAITING} explanations are waiting")
        future = self._pool.submit(_answer, version, history, item, k)
        self._open.add(future)
        return future

    def close(self) -> None:
        """Finish what has been accepted, then give back the thread."""
        self._pool.shutdown()


def check_model(version: ModelVersion) -> None:
    """Raise Refusal, 422, unless the version's model can be explained."""
    try:
        check_explainable(version.model)
    except ConfigError as error:
        raise Refusal(422, "not_explainable", str(error)) from error


def _answer(version: ModelVersion, history: History, item: int, k: int) -> dict[str, Any]:
    def names(rows: Sequence[int]) -> list[ItemId]:
        return [version.catalogue.id(row) for row in rows]

    start = window_start(len(history), version.max_len, version.step)
    found = explained(version.model, history, start, item, k, names)
    return {"model": version.id, **found}
