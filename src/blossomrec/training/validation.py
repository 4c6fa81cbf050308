"""Validation during training: the model among all items on a sample of the validation cases."""

from __future__ import annotations

import torch

from blossomrec.config import RunConfig
from blossomrec.data.log import EventLog
from blossomrec.data.split import Split
from blossomrec.evaluation import RankingOptions, evaluate, resolve_filter_seen
from blossomrec.models.sequence import SequenceModel
from blossomrec.ranks import ALONE, Ranks
from blossomrec.training.setup import Fabric


class Validation:
    """Metrics by name on a fixed sample of the validation cases; falsy when there are none.

    The model encodes in the precision of the training; scores are compared in float32. Ranks that
    share the item table each encode a part of the cases, and all have the metrics.
    """

    def __init__(
        self,
        model: SequenceModel,
        log: EventLog,
        split: Split,
        config: RunConfig,
        fabric: Fabric,
        ranks: Ranks = ALONE,
    ):
        self.model, self.log, self.fabric, self.ranks = model, log, fabric, ranks
        self.count = min(len(split.valid), config.training.validation_users)
        self.cases = split.valid.sample(self.count, config.training.seed)
        self.train_end = split.train_end
        self.options = RankingOptions(
            filter_seen=resolve_filter_seen(config.evaluation, log),
            ks=sorted({10, *config.evaluation.ks}),
        )
        # Without gradients an event takes less than a quarter of the memory.
        self.tokens_per_batch = max(1, 4 * config.training.tokens_per_batch // ranks.size)

    def __bool__(self) -> bool:
        return self.count > 0

    def __call__(self) -> dict[str, float]:
        """Rank the targets of the sample among all items."""
        self.model.eval()
        with torch.inference_mode(), self.fabric.autocast():
            evaluation = evaluate(
                self.model,
                self.log,
                self.cases,
                self.options,
                train_end=self.train_end,
                device=self.fabric.device,
                tokens_per_batch=self.tokens_per_batch,
                processes=self.ranks,
            )
        return evaluation.metrics
