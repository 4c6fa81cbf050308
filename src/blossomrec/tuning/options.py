"""How a search is done, as options of the command line and of ``tune``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blossomrec.config import LARGEST_SEED, option
from blossomrec.engines import Engine


@dataclass(frozen=True)
class TuneOptions:
    """How options are searched, and for how long."""

    space: str = option(
        "",
        "TOML, YAML or JSON file with what is searched, or a name such as sasrec or blossom; that "
        "of the backbone and attention without it",
    )
    trials: int = option(20, "trials in the folder, those of earlier calls included", low=1)
    minutes: float = option(
        0.0, "minutes after which no trial begins any more, 0 for no such limit", low=0
    )
    seed: int = option(0, "seed of the search, not of a training", low=0, high=LARGEST_SEED)
    jobs: int = option(
        0,
        "trials at a time, each in a process of its own; 0 for one, with engine ray one for each "
        "GPU or core",
        low=0,
        high=1_024,
    )
    engine: Engine = option(
        "local",
        "who trains: this machine, or the workers of Ray, on one machine or many (extra: ray)",
    )
    pruner: Literal["median", "hyperband", "none"] = option(
        "median", "what ends a trial early that is worse than others were at the same epoch"
    )
    startup: int = option(
        5, "trials at random, and without pruning, before those seen decide", low=1
    )
    min_epochs: int = option(3, "epochs that a trial has before it may be ended early", low=1)
    keep: int = option(3, "best trials whose weights are kept", low=1)
