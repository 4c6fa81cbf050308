"""A loss of one's own: a margin between the target and sampled items.

    python examples/own_loss.py [FOLDER]

Registered by a decorator, it is known in this program. To name it on the command line too, put it
in a package with an entry point, as ``own_backbone`` does: group ``blossomrec.losses``.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from blossomrec import BlossomRec, EventLog
from blossomrec.data.simulate import SimulationConfig, simulate
from blossomrec.losses import LOSSES, SampledLoss, weighted_mean


@LOSSES.register("hinge")
class Hinge(SampledLoss):
    """Mean of max(0, 1 - s+ + s-) over the targets and ``config.negatives`` sampled items."""

    # Targets may count differently.
    weighted = True

    def of_sample(
        self,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        negatives: Tensor,
        log_q: Tensor,
        row_weights: Tensor | None = None,
    ) -> Tensor:
        # An embedding lookup, unlike indexing, has a gradient that is summed in a fixed order.
        positive = (hidden * F.embedding(targets, weight)).sum(1, keepdim=True)
        margin = F.relu(1 - positive + hidden @ F.embedding(negatives, weight).T)
        losses = margin.masked_fill(negatives == targets[:, None], 0.0).mean(1)
        return weighted_mean(losses, row_weights)


def main(folder: Path, users: int = 1_000, **options: Any) -> None:
    events = simulate(SimulationConfig(users=users, items=users, events_per_user=40))
    log = EventLog.prepare(events, folder / "log")
    recommender = BlossomRec(**{"loss": "hinge", "max_len": 100, "epochs": 5} | options)
    recommender.fit(log, folder / "run", progress=False)
    print(f"NDCG@10 with the loss hinge: {recommender.evaluate().metrics['ndcg@10']:.4f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
