"""Explanations beside the thread of the model, and the form in which they are answered."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from blossomrec.data.history import History
from blossomrec.errors import ConfigError
from blossomrec.report.wording import habit
from blossomrec.serving.engine.explain import (
    Explanation,
    LayerShares,
    PathShares,
    check_explainable,
    explain,
)
from blossomrec.serving.engine.histories import window_start
from blossomrec.serving.engine.version import ModelVersion
from blossomrec.serving.refusals import Refusal, unavailable

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
    start = window_start(len(history), version.max_len, version.step)
    seen = history[start:]
    explanation = explain(version.model, seen, item)
    events = _Events(version, seen.items, start)
    largest = np.argsort(-explanation.contributions, kind="stable")[:k]
    return {
        "model": version.id,
        "item": version.catalogue.id(item),
        "score": explanation.score,
        "rest": explanation.rest,
        "own": None if explanation.own is None else _own(explanation, habit(seen, item)),
        "length": len(history),
        "start": start,
        "block_size": explanation.block_size,
        "events": [events.share(place, explanation.contributions) for place in largest.tolist()],
        "items": [version.catalogue.id(row) for row in seen.items.tolist()],
        "contributions": [round(share, 6) for share in explanation.contributions.tolist()],
        "layers": [events.layer(layer, explanation.block_size) for layer in explanation.layers],
    }


def _own(explanation: Explanation, words: str) -> dict[str, Any]:
    return {"contribution": explanation.own, "share": explanation.own_share, "words": words}


class _Events:
    """Parts of the answer about the events that the model sees; ``place`` is counted from them."""

    def __init__(self, version: ModelVersion, rows: np.ndarray, start: int):
        self._ids = [version.catalogue.id(row) for row in rows.tolist()]
        self._start = start

    def share(self, place: int, contributions: np.ndarray) -> dict[str, Any]:
        position, share = self._start + place, float(contributions[place])
        return {"position": position, "item": self._ids[place], "contribution": share}

    def seen(self, place: int, path: PathShares) -> dict[str, Any]:
        return {**self.share(place, path.contributions), "weight": float(path.weights[place])}

    def layer(self, shares: LayerShares, block_size: int) -> dict[str, Any]:
        long, short = shares.gates.mean(0).tolist()
        own = (len(self._ids) - 1) // block_size
        heads = dict(sorted({**shares.selected, own: shares.kv_heads}.items()))
        blocks = [
            self._block(block, count, block == own, shares.long, block_size)
            for block, count in heads.items()
        ]
        recent = np.flatnonzero(shares.short.weights).tolist()
        return {
            "long": {**_path(long, shares.long), "blocks": blocks},
            "short": {
                **_path(short, shares.short),
                "events": [self.seen(place, shares.short) for place in recent],
            },
        }

    def _block(
        self, block: int, heads: int, own: bool, path: PathShares, size: int
    ) -> dict[str, Any]:
        inside = slice(block * size, min((block + 1) * size, len(self._ids)))
        return {
            "own": own,
            "heads": heads,
            "weight": float(path.weights[inside].sum()),
            "contribution": float(path.contributions[inside].sum()),
            "events": [self.seen(place, path) for place in range(inside.start, inside.stop)],
        }


def _path(gate: float, path: PathShares) -> dict[str, Any]:
    return {"gate": gate, "contribution": float(path.contributions.sum())}
