"""The trainings that two ranks, and one, do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "warm_start"))

from small_training import logged, small_config
from two_periods import SEES_ALL

from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.evaluation import evaluate
from blossomrec.evaluation.evaluation import save_evaluation
from blossomrec.measure import evaluate_run
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
# In the shape of a graph, of which all but the capture is the same on a processor.
FIXED: dict[str, Any] = {"graph": "on"}
# As of one rank, to rounding.
CASES: dict[str, dict[str, Any]] = {
    "sasrec": {"repeats": "on"},
    "sasrec-fixed": FIXED,
    "bert4rec": {"backbone": "bert4rec", "content": "on"} | FIXED,
    "sasrec-sampled": {"loss": "sampled_softmax", "table_optimizer": "lazy_adamw"} | FIXED,
    "bert4rec-sampled": {"backbone": "bert4rec", "loss": "gbce", "content": "on"},
    "sasrec-bpr": {"loss": "bpr", "table_optimizer": "rowwise_adagrad"},
}
# In training some are not told, which is drawn.
UNTOLD = dict.fromkeys(("request_time", "request_kind", "user_table"), "off")
# Of two periods: trained on the first, and brought up to date with both.
BEGUN: dict[str, dict[str, Any]] = {
    "sees-much": PLAIN | SEES_ALL | UNTOLD | {"epochs": 2},
    "sampled": PLAIN | CASES["sasrec-sampled"] | {"epochs": 2},
    "masked": PLAIN | {"backbone": "bert4rec", "events": "all", "epochs": 2},
}
# Broken off by one number of ranks after an epoch, and gone on with by another.
RESUMED = ("bert4rec", "sasrec-sampled")
# With all that is drawn, to the bit.
DRAWN: dict[str, Any] = {"epochs": 3, "ema_decay": 0.9, "content": "on", "id_dropout": 0.2} | FIXED


def run_case(
    log: EventLog,
    options: dict[str, Any],
    run: Path,
    ranks: Ranks = ALONE,
    *,
    last: int = 0,
    ancestor: Path | None = None,
) -> TrainingResult:
    """Train; end after the epoch ``last`` where it is over 0."""
    config = small_config(**options)
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, log.num_items, log.tables, ranks)
    split = make_split(log, config.evaluation)
    stop = None if not last else lambda record: record["epoch"] == last
    return train(
        *(model, log, split, config, run),
        progress=False,
        after_epoch=stop,
        ancestor=ancestor,
        ranks=ranks,
    )


def run_from(log: EventLog, folder: Path, name: str, numbers: str, ranks: Ranks = ALONE) -> None:
    """Bring a run of the first period up to date; numbers: of ranks, of that run and of this."""
    before = numbers.partition("-")[0]
    run_case(
        *(log, BEGUN[name], folder / numbers / f"from-{name}", ranks),
        ancestor=folder / f"first-{before}" / name,
    )


def assert_same_training(one: Path, two: Path) -> None:
    """Losses and weights are the same but for rounding, validation is the same."""
    for mine, theirs in zip(logged(one), logged(two), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["validation"] == pytest.approx(theirs["validation"], abs=1e-6)
        assert mine["step"] == theirs["step"]
    weights, others = (load_file(run / "model.safetensors") for run in (one, two))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        np.testing.assert_allclose(others[name], weight, rtol=1e-4, atol=1e-5, err_msg=name)


# How runs are evaluated, in blocks of few cases.
EVALUATED: dict[str, dict[str, Any]] = {
    "full": {"ranking": "full", "filter_seen": "yes"},
    "all": {"ranking": "full", "filter_seen": "no"},
    "sampled": {"ranking": "uni100"},
}


def evaluated(log: EventLog, run: Path, folder: Path, ranks: Ranks = ALONE) -> None:
    """Measure a run in every way, with room for the scores of few cases."""
    for name, options in EVALUATED.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("blossomrec.evaluation.on_shards.CASES", 16)
            elements = evaluate.__kwdefaults__ | {"score_elements": 640, "tokens_per_batch": 90}
            patch.setattr(evaluate, "__kwdefaults__", elements)
            measured = evaluate_run(run, log, device="cpu", ranks=ranks, **options)
        save_evaluation(measured, folder / run.name / f"{name}-{ranks.rank}.json")


def each_rank(log: EventLog, first: EventLog, both: EventLog, folder: Path) -> None:
    """What one of the two does."""
    with open_ranks("cpu") as ranks:
        for name, options in CASES.items():
            run_case(log, PLAIN | options, folder / "two" / name, ranks)
        for name in RESUMED:
            run_case(log, PLAIN | CASES[name], folder / "two-one" / name, ranks, last=2)
            run_case(log, PLAIN | CASES[name], folder / "one-two" / name, ranks)
        run_case(log, DRAWN, folder / "whole", ranks)
        run_case(log, DRAWN, folder / "broken", ranks, last=1)
        run_case(log, DRAWN, folder / "broken", ranks)
        for name, options in BEGUN.items():
            run_case(first, options, folder / "first-two" / name, ranks)
            evaluated(first, folder / "first-one" / name, folder / "evaluated-two", ranks)
            for numbers in ("one-two", "two-two"):
                run_from(both, folder, name, numbers, ranks)
