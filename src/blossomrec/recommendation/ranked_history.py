"""The best items after a history that is given, of whatever user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from blossomrec.data.batch import pack
from blossomrec.errors import ConfigError
from blossomrec.evaluation.top_k import Reordering, Seen, TopK
from blossomrec.recommendation.request import Request
from blossomrec.recommendation.user_histories import SECONDS_A_DAY
from blossomrec.rules.catalogue import ItemRules
from blossomrec.rules.reranking import AskedFor

if TYPE_CHECKING:
    from blossomrec.data.history import History
    from blossomrec.data.units import Moment
    from blossomrec.models.sequence import SequenceModel
    from blossomrec.rules import Rules


def check_days(rules: Rules | None, columns: Mapping[str, Any], at: Moment | None) -> None:
    """Raise ConfigError where days are to count, and it is not known from when, or of what.

    Args:
        columns: of the history, by name.
        at: the moment for which is recommended.
    """
    if rules is None or rules.exclude_seen_days is None:
        return
    days = f"exclude_seen_days is {rules.exclude_seen_days}"
    if "timestamp" not in columns:
        raise ConfigError(f"{days}: the history comes without timestamps")
    if at is None:
        raise ConfigError(f"{days}: at, from which they count, is not given")


def ranked_after(
    history: History, model: SequenceModel, request: Request
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Item row, score and rank of everything that is recommended after a history.

    Args:
        history: all of its events of known items; where there is none, the fallback of the rules,
            which there must be, is what is recommended.
        model: in evaluation mode, on its device.
    """
    rules = request.rules or ItemRules()
    top = TopK(
        model,
        request.k,
        1,
        items=request.items,
        boosts=rules.boosts,
        choice=rules.choice,
        device=model.item_embeddings.weight.device,
    )
    shown = history[-request.max_len :]
    reordering = _reordering(shown, model, request)
    if len(shown):
        width = len(model.fields.context)
        asked = shown.asked_for(request.moment, request.kind, context=width)
        found = top.of(pack([asked], model.inputs), _seen(history, request), reordering)
        rows, scores = (each[0] for each in found)
    else:
        assert rules.fallback is not None
        rows, scores = top.of_all(rules.fallback, reordering)
    there = rows >= 0
    return rows[there], scores[there], np.flatnonzero(there) + 1


def _seen(history: History, request: Request) -> Seen | None:
    """What must not be recommended; None for nothing."""
    days = None if request.rules is None else request.rules.exclude_seen_days
    if days is None:
        return Seen.of([history.items]) if request.filter_viewed else None
    assert history.times is not None
    return Seen.of([history.items[history.times > request.moment - days * SECONDS_A_DAY]])


def _reordering(shown: History, model: SequenceModel, request: Request) -> Reordering | None:
    """What the re-ranker makes of the best items; None without one."""
    reranking = None if request.rules is None else request.rules.reranking
    if reranking is None:
        return None
    kind = model.fields.kinds[request.kind - 1] if request.kind else None
    asked = AskedFor(None, shown.items, request.moment, kind)
    return Reordering(
        reranking.depth, lambda _, rows, scores: reranking.order(rows, scores, request.k, asked)
    )
