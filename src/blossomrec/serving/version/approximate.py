"""The best items of a large catalogue, nearly: an inverted file over the item embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blossomrec.errors import ConfigError, MissingExtraError, RerankerError
from blossomrec.evaluation.scoring import Queries, mixes_own
from blossomrec.models.sequence import SequenceModel
from blossomrec.serving.metrics import Metrics
from blossomrec.serving.version.ranking import Best, Choice, Ranking

# One request in so many is ranked exactly as well, which tells how much is missed.
CHECK_EVERY = 100


class ApproximateRanking(Ranking):
    """Looks for the best items in the lists of embeddings closest to the query (faiss, IVF).

    Scores are exact; a list may hold an item that was not looked at. Requests that name the items
    to choose from or bring rules, and those for which too few are found, are ranked exactly.

    Args:
        model: in evaluation mode.
        probes: how many of about sqrt(I) lists are looked into.
        metrics: are told how many of the best items were found when it was checked.

    Raises:
        ConfigError: the model mixes in the user's own items, which takes the scores of all items.
        MissingExtraError: faiss is not installed.
    """

    def __init__(self, model: SequenceModel, probes: int, metrics: Metrics):
        super().__init__(model)
        if mixes_own(model):
            raise ConfigError(
                f"probes is {probes}: a model with model.repeats 'on' needs the scores of all "
                "items; choose 0"
            )
        try:
            import faiss
        except ModuleNotFoundError as error:
            raise MissingExtraError("faiss", "ann") from error
        self._faiss, self._probes, self._metrics, self._asked = faiss, probes, metrics, 0
        table = model.output_weight().detach().float().cpu().numpy()
        lists = max(1, round(math.sqrt(len(table))))
        self._index = faiss.index_factory(
            table.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT
        )
        self._index.train(table)
        self._index.add(table)

    def best(self, queries: Queries, choices: Sequence[Choice]) -> list[Best | RerankerError]:
        self._faiss.omp_set_num_threads(torch.get_num_threads())
        return [
            self._one(query, choice)
            for query, choice in zip(queries.states.split(1), choices, strict=True)
        ]

    def _one(self, query: Tensor, choice: Choice) -> Best | RerankerError:
        left_out = np.unique(np.concatenate([*choice.left_out, self._off.rows]))
        wanted = min(choice.k, self._index.ntotal - len(left_out))
        if choice.among is not None or choice.rules is not None or wanted <= 0:
            return self._exactly(query, choice)
        found = self._search(query, wanted, left_out)
        if len(found[0]) < wanted:
            return self._exactly(query, choice)
        self._asked += 1
        if self._asked % CHECK_EVERY == 0:
            best = self._exactly(query, choice)
            assert not isinstance(best, RerankerError)
            self._metrics.ann_wanted.inc(wanted)
            self._metrics.ann_found.inc(len(np.intersect1d(best[0], found[0])))
        return found

    def _search(self, query: Tensor, k: int, left_out: np.ndarray) -> Best:
        selector = self._faiss.IDSelectorNot(self._faiss.IDSelectorBatch(left_out))
        options = self._faiss.SearchParametersIVF(sel=selector, nprobe=self._probes)
        scores, rows = self._index.search(query.float().cpu().numpy(), k, params=options)
        kept = rows[0] >= 0
        return rows[0][kept], scores[0][kept]

    def _exactly(self, query: Tensor, choice: Choice) -> Best | RerankerError:
        return super().best(Queries(query), [choice])[0]
