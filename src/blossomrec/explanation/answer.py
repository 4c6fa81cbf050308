"""An explanation in the form in which it is answered, with the ids of the items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from blossomrec.data.history import History
from blossomrec.explanation.explain import explain
from blossomrec.explanation.shares import Explanation, LayerShares, PathShares
from blossomrec.models.sequence import SequenceModel
from blossomrec.report.wording import habit

# External ids of item rows.
Names = Callable[[Sequence[int]], Sequence[int | str]]


def explained(
    model: SequenceModel, history: History, start: int, item: int, k: int, names: Names
) -> dict[str, Any]:
    """Why an item has its score after a history; see :class:`schemas.Explained`.

    Args:
        model: as of :func:`blossomrec.explanation.explain.explain`.
        history: the whole of it, as the model sees it, at least one event.
        start: position of the first event that the model sees.
        item: row of the item.
        k: events to name.
    """
    seen = history[start:]
    explanation = explain(model, seen, item)
    ids = list(names(seen.items.tolist()))
    events = _Events(ids, start)
    largest = np.argsort(-explanation.contributions, kind="stable")[:k]
    return {
        "item": names([item])[0],
        "score": explanation.score,
        "rest": explanation.rest,
        "own": None if explanation.own is None else _own(explanation, habit(seen, item)),
        "length": len(history),
        "start": start,
        "block_size": explanation.block_size,
        "events": [events.share(place, explanation.contributions) for place in largest.tolist()],
        "items": ids,
        "contributions": [round(share, 6) for share in explanation.contributions.tolist()],
        "layers": [events.layer(layer, explanation.block_size) for layer in explanation.layers],
    }


def _own(explanation: Explanation, words: str) -> dict[str, Any]:
    return {"contribution": explanation.own, "share": explanation.own_share, "words": words}


class _Events:
    """Parts of the answer about the events that the model sees; ``place`` is counted from them."""

    def __init__(self, ids: Sequence[int | str], start: int):
        self._ids, self._start = ids, start

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
