"""The trainings that two ranks, and one, do: run by torchrun, this is one of the two.

torchrun --nproc-per-node 2 ranks_cases.py LOG FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_training import small_config

from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.models import build_model
from blossomrec.ranks import ALONE, Ranks, open_ranks
from blossomrec.training import TrainingResult, train

# What is drawn by another rank is drawn otherwise.
PLAIN: dict[str, Any] = {
    "dropout": 0.0,
    "id_dropout": 0.0,
    "selector_weight": 0.0,
    "epochs": 5,
    "ema_decay": 0.9,
}
# As of one rank, to rounding.
CASES: dict[str, dict[str, Any]] = {
    "sasrec": {"repeats": "on"},
    "bert4rec": {"backbone": "bert4rec", "content": "on"},
    "sasrec-sampled": {"loss": "sampled_softmax", "table_optimizer": "lazy_adamw"},
    "bert4rec-sampled": {"backbone": "bert4rec", "loss": "gbce", "content": "on"},
    "sasrec-bpr": {"loss": "bpr", "table_optimizer": "rowwise_adagrad"},
}
# Broken off by one number of ranks after an epoch, and gone on with by another.
RESUMED = ("bert4rec", "sasrec-sampled")
# With all that is drawn, to the bit.
DRAWN: dict[str, Any] = {"epochs": 3, "ema_decay": 0.9, "content": "on", "id_dropout": 0.2}


def run_case(
    log: EventLog,
    options: dict[str, Any],
    run: Path,
    ranks: Ranks = ALONE,
    *,
    last: int = 0,
) -> TrainingResult:
    """Train; end after the epoch ``last`` where it is over 0."""
    config = small_config(**options)
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, log.num_items, log.tables, ranks)
    split = make_split(log, config.evaluation)
    stop = None if not last else lambda record: record["epoch"] == last
    return train(model, log, split, config, run, progress=False, after_epoch=stop, ranks=ranks)


def both_ranks(log: EventLog, folder: Path, ranks: Ranks) -> None:
    for name, options in CASES.items():
        run_case(log, PLAIN | options, folder / "two" / name, ranks)
    for name in RESUMED:
        run_case(log, PLAIN | CASES[name], folder / "two-one" / name, ranks, last=2)
        run_case(log, PLAIN | CASES[name], folder / "one-two" / name, ranks)
    run_case(log, DRAWN, folder / "whole", ranks)
    run_case(log, DRAWN, folder / "broken", ranks, last=1)
    run_case(log, DRAWN, folder / "broken", ranks)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with open_ranks("cpu") as opened:
        both_ranks(EventLog.open(sys.argv[1]), Path(sys.argv[2]), opened)
