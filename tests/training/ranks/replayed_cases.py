"""Trainings that two ranks do with a GPU each, replayed and operation by operation.

Run by torchrun:
    torchrun --nproc-per-node 2 replayed_cases.py LOG FOLDER DEVICE
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from ranks_cases import run_case

from blossomrec.data.log import EventLog
from blossomrec.ranks import open_ranks
from blossomrec.training import update

SIZES: dict[str, Any] = {
    "block_size": 16,
    "compress_window": 32,
    "max_len": 60,
    "hidden_size": 128,
    "heads": 8,
    "kv_heads": 2,
    "epochs": 2,
    "graph": "on",
}
REPLAYED: dict[str, dict[str, Any]] = {
    "exact": SIZES,
    "own": SIZES | {"repeats": "on"},
    "sampled": SIZES | {"loss": "sampled_softmax", "table_optimizer": "lazy_adamw"},
    "masked": SIZES | {"backbone": "bert4rec", "loss": "gbce"},
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    device = sys.argv[3]
    with open_ranks(device) as ranks:
        log, folder = EventLog.open(sys.argv[1]), Path(sys.argv[2])
        for kind, warm_up in (("replayed", update.WARM_UP), ("stepwise", 1 << 30)):
            update.WARM_UP = warm_up
            for name, options in REPLAYED.items():
                run_case(log, options | {"device": device}, folder / kind / name, ranks)
