"""Two ranks train what one does."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from ranks_cases import CASES, RESUMED, assert_same_training
from safetensors.torch import load_file
from small_training import logged

from blossomrec.recommender import BlossomRec
from blossomrec.training.checkpoint import Checkpoint, Checkpoints


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
