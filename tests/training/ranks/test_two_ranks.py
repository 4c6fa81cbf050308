"""Two ranks train what one does: started by torchrun, once, on processors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from ranks_cases import CASES, PLAIN, RESUMED, run_case
from safetensors.torch import load_file
from small_training import logged

from blossomrec.data.log import EventLog
from blossomrec.recommender import BlossomRec
from blossomrec.training.checkpoint import Checkpoint, Checkpoints


@pytest.fixture(scope="module")
def log(tiny_events, tmp_path_factory) -> EventLog:
    """The tiny log with a table of its items, and events that do not count alike."""
    items = tiny_events["item_id"].unique().sort()
    rng = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "item_id": items,
            "genre": [f"g{n % 5}" for n in range(len(items))],
            "price": rng.random(len(items)).astype(np.float32),
        }
    )
    folder = tmp_path_factory.mktemp("shared") / "log"
    events = tiny_events.with_columns(weight=pl.int_range(pl.len()) % 4 / 2)
    return EventLog.prepare(events, folder, items=table, weight="weight")


@pytest.fixture(scope="module")
def trained(log, tmp_path_factory) -> Path:
    """The folder of what one rank trained, in ``one`` and half in ``one-two``, and two ranks."""
    folder = tmp_path_factory.mktemp("trained")
    for name, options in CASES.items():
        run_case(log, PLAIN | options, folder / "one" / name)
    for name in RESUMED:
        run_case(log, PLAIN | CASES[name], folder / "one-two" / name, last=2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(Path(__file__).with_name("ranks_cases.py"))]
    done = subprocess.run(
        [*command, str(log.folder), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name in RESUMED:
        run_case(log, PLAIN | CASES[name], folder / "two-one" / name)
    return folder


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


def newest(run: Path) -> Checkpoint:
    found = Checkpoints(run / "checkpoints").newest()
    assert found is not None
    return found


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_what_one_does(trained, name):
    one = trained / "one" / name
    assert logged(one)[-1]["step"] >= 50
    assert_same_training(one, trained / "two" / name)


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("numbers", ["one-two", "two-one"])
def test_another_number_of_ranks_goes_on(trained, name, numbers):
    assert_same_training(trained / "one" / name, trained / numbers / name)


def test_as_many_ranks_go_on_to_the_bit(trained):
    whole, broken = trained / "whole", trained / "broken"
    assert logged(whole) == logged(broken)
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
    mine, theirs = (newest(run).tensors for run in (whole, broken))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)


def test_a_run_of_two_ranks_is_a_run_like_others(trained, log):
    run = trained / "two" / "bert4rec"
    recommender = BlossomRec.from_pretrained(run, log, device="cpu")
    assert recommender.recommend(k=3)["rank"].max() == 3
    assert not list(run.glob("lock*"))
    shards = sorted(max((run / "checkpoints").glob("step-*")).glob("shards/*"))
    table = "average.item_embeddings.weight"
    assert [len(load_file(each)[table]) for each in shards] == [41, 40]


def test_a_damaged_shard_is_passed_over(trained, tmp_path):
    # It was saved where it was broken off, and at its end.
    run = shutil.copytree(trained / "broken", tmp_path / "run")
    *_, first, last = sorted((run / "checkpoints").glob("step-*"))
    shard = max((last / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.warns(UserWarning, match="was altered"):
        assert newest(run).path == first
