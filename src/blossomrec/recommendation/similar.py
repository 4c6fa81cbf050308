"""The items whose embeddings are closest to others."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch

from blossomrec.data.vocabulary import Vocabulary
from blossomrec.evaluation import scoring
from blossomrec.models.sequence import SequenceModel


@torch.no_grad()
def similar_items(
    model: SequenceModel, vocabulary: Vocabulary, rows: np.ndarray, k: int
) -> pl.DataFrame:
    """For item rows [N] the ``k`` closest others by cosine; see :meth:`BlossomRec.similar_items`.

    Args:
        vocabulary: of the catalogue.
    """
    items = torch.from_numpy(rows)
    table = torch.nn.functional.normalize(model.output_weight().float(), dim=-1)
    count = min(k, len(table) - 1)
    found = []
    for part in items.to(table.device).split(max(1, scoring.SCORE_ELEMENTS // len(table))):
        cosine = table[part] @ table.T
        cosine[torch.arange(len(part)), part] = -torch.inf
        found.append(cosine.topk(count, dim=-1))
    scores = torch.cat([part.values for part in found]).cpu().numpy()
    similar = torch.cat([part.indices for part in found]).cpu().numpy()
    return pl.DataFrame(
        {
            "item_id": vocabulary.ids(np.repeat(rows, count)),
            "similar_id": vocabulary.ids(similar.ravel()),
            "score": scores.ravel(),
            "rank": np.tile(np.arange(1, count + 1), len(rows)),
        }
    )
