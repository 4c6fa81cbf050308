import re

import numpy as np
import polars as pl
import pytest
import torch
from small_training import small_config

from blossomrec.attention.api import resolve
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.models import build_model
from blossomrec.training.setup import build_parts, describe, open_fabric


def lines(log, run, **options):
    """What is said of a training of this log."""
    config = small_config(**options)
    split = make_split(log, config.evaluation)
    model = build_model(config.model, log.num_items)
    parts = build_parts(model, log, split.train_end, config, open_fabric(config.training))
    cases = min(len(split.valid.users), config.training.validation_users)
    return describe(parts, cases, log, config, run), model


def test_five_lines_tell_what_is_trained(tiny_log, tmp_path):
    told, model = lines(tiny_log, tmp_path / "run", warmup_steps=3)
    count = sum(one.numel() for one in model.parameters())
    attention = model.stack()[0].attention
    impl = resolve(attention.spec, attention.heads, torch.float32, "cpu").name
    assert told == [
        "log: 60 users, 1,830 events, 80 items",
        f"model: sasrec, {count:,} parameters",
        f"device: cpu, 32-true, blossom attention by {impl}",
        "training: 11 steps an epoch, at most 3 epochs, 58 validation cases",
        f"run: {tmp_path / 'run'}",
    ]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"attention": "full"}, "full attention of PyTorch"),
        ({"backbone": "gru4rec"}, "no attention"),
        ({"attention": "linrec"}, "32-true, linrec attention"),
        ({"backbone": "mamba4rec"}, "32-true, mamba attention"),
        ({"attention_impl": "reference"}, "blossom attention by reference"),
        ({"precision": "bf16-mixed"}, "cpu, bf16-mixed, blossom attention by torch"),
    ],
)
def test_attention_is_named_with_who_computes_it(tiny_log, tmp_path, options, words):
    told, _ = lines(tiny_log, tmp_path, **options)
    assert told[2].endswith(words)


@pytest.mark.parametrize(
    "options, words",
    [
        (
            {"tokens_per_batch": 4_096},
            r"training.tokens_per_batch 4096 \(1 steps an epoch; 64 would give more\)",
        ),
        (
            {"warmup_steps": 100, "epochs": 4},
            r"training.warmup_steps 100 \(4 are taken, a tenth of all\)",
        ),
        ({"max_len": 241}, r"model.max_len 241 \(the longest history has 60 events\)"),
        (
            {"validation_users": 29},
            r"training.patience 10 \(29 validation cases leave to chance which epoch is best\)",
        ),
    ],
)
def test_a_log_too_small_for_an_option_is_told_with_it(tiny_log, tmp_path, options, words):
    told, _ = lines(tiny_log, tmp_path, **{"warmup_steps": 0, **options})
    assert re.fullmatch(f"warning: the log is small for these options: {words}", told[5])
    assert len(told) == 6


def test_all_that_is_small_stands_in_one_line(tmp_path):
    rng = np.random.default_rng(0)
    events = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(9), 6),
            "item_id": rng.integers(0, 20, 54),
            "timestamp": np.arange(54),
        }
    )
    log = EventLog.prepare(events, tmp_path / "log")
    options = {"tokens_per_batch": 4_096, "warmup_steps": 100, "max_len": 200}
    told, _ = lines(log, tmp_path / "run", **options)
    assert len(told) == 6
    for name in ("tokens_per_batch 4096", "warmup_steps 100", "max_len 200", "patience 10"):
        assert name in told[5]


def test_the_suggested_batch_does_give_more_steps(repeat_log, tmp_path):
    told, _ = lines(repeat_log, tmp_path, tokens_per_batch=1_000, warmup_steps=0)
    better = int(re.search(r"; (\d+) would", told[5])[1])
    told, _ = lines(repeat_log, tmp_path, tokens_per_batch=better, warmup_steps=0)
    assert len(told) == 5
