"""The best items for each history: what recommending comes down to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from blossomrec.arguments import whole_number
from blossomrec.errors import DataError
from blossomrec.evaluation import scoring

if TYPE_CHECKING:
    from blossomrec.data.batches import Batch


def top_k(
    scorer: Any,
    batch: Batch,
    k: int,
    *,
    seen: Sequence[np.ndarray] | None = None,
    items: np.ndarray | None = None,
    device: str | torch.device = "cpu",
    score_elements: int = scoring.SCORE_ELEMENTS,
) -> tuple[np.ndarray, np.ndarray]:
    """The k items with the highest scores for every history, exactly.

    Args:
        scorer: as for ``evaluate``; it already lies on ``device``.
        batch: B packed histories.
        k: items wanted for each history.
        seen: for each history, item rows that must not be recommended; None for no filter.
        items: the only item rows that may be recommended; None for the whole catalogue.
        device: where the batch goes.
        score_elements: scores held at a time, or one row of the catalogue if that is more.

    Returns:
        Item rows int64 [B, k], best first, equal scores in order of row, and their scores
        float32 [B, k]; -1 and -inf where fewer than k items may be recommended.

    Raises:
        ConfigError: k is no whole number of at least 1.
        DataError: ``seen`` has another length than the batch, or an item row does not exist.
        TrainingError: a score is not a number.
    """
    k = whole_number("k", k)
    histories, device = len(batch.cu_seqlens) - 1, torch.device(device)
    if seen is not None and len(seen) != histories:
        raise DataError(f"seen has {len(seen)} entries for {histories} histories")
    if items is not None:
        items = np.unique(_checked_rows(items, scorer.num_items, "items"))
    block = scoring.ScoreBlock(
        scorer, histories, device=device, score_elements=score_elements, items=items
    )
    # A list longer than the catalogue would only be padding; it is added at the end.
    kept = min(k, scorer.num_items)
    rows = np.full((histories, k), -1, dtype=np.int64)
    scores = np.full((histories, k), -np.inf, dtype=np.float32)
    with scoring.scoring_mode(scorer):
        queries = scoring.as_queries(scorer.queries(batch.to(device)))
        for start in range(0, histories, block.rows):
            part = slice(start, min(start + block.rows, histories))
            with scoring.full_precision(device):
                filled = block.fill(queries[part])
            if seen is not None:
                _leave_out(filled, seen[part], scorer.num_items)
            best, values = scoring.best(filled, kept)
            rows[part, :kept], scores[part, :kept] = best.cpu().numpy(), values.cpu().numpy()
    return rows, scores


def _leave_out(block: Tensor, seen: Sequence[np.ndarray], num_items: int) -> None:
    lengths = [len(items) for items in seen]
    rows = np.repeat(np.arange(len(seen)), lengths)
    items = _checked_rows(np.concatenate([*seen, np.empty(0, np.int64)]), num_items, "seen")
    block[
        torch.from_numpy(rows).to(block.device), torch.from_numpy(items).to(block.device)
    ] = -torch.inf


def _checked_rows(rows: np.ndarray, num_items: int, name: str) -> np.ndarray:
    rows = np.asarray(rows).astype(np.int64)
    wrong = rows[(rows < 0) | (rows >= num_items)]
    if len(wrong):
        raise DataError(f"{name} contains item row {wrong[0]}: rows go from 0 to {num_items - 1}")
    return rows
