"""A forked process has no threads but its own: it answers, or says why it cannot."""

from __future__ import annotations

import subprocess
import sys

import polars as pl
import pytest

from tables_of_ids import write_table

PARENT = """
import os, sys, traceback
import polars as pl
import torch
torch.set_num_threads(4)
from blossomrec import BlossomRec
from blossomrec.data.vocabulary import Vocabulary
model = BlossomRec.from_pretrained({run!r})
# Threads of polars and of PyTorch, which the child will not have.
pl.DataFrame({{"a": range(100_000)}}).sort("a").unique()
torch.nn.functional.gelu(torch.randn(4_000_000))
{before}
child = os.fork()
if child == 0:
    try:
        {ask}
        torch.nn.functional.gelu(torch.randn(4_000_000))
    except Exception as error:
        print(type(error).__name__, error)
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
print(model.recommend([1001], 3)["item_id"].to_list())
"""


@pytest.fixture(scope="module")
def run(tiny_log, tmp_path_factory):
    from blossomrec.recommender import BlossomRec
    from small_options import SMALL

    folder = tmp_path_factory.mktemp("forked") / "run"
    BlossomRec(**SMALL).fit(tiny_log, folder, progress=False)
    return folder


def forked(run, ask: str, before: str = "") -> list[str]:
    """What a forked child prints, and what its parent recommends."""
    code = PARENT.format(run=str(run), ask=ask, before=before)
    # The limit is for a child that hangs; it answers in a second or two.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_forked_child_recommends(run):
    ask = "print(model.recommend([1001], 3)['item_id'].to_list())"
    child, parent = forked(run, ask, "model.recommend([1001], 1)")
    assert child == parent and len(child) > 5


def test_a_forked_child_knows_items_that_nobody_asked_for_before(run):
    ask = "print(model.recommend_history(['50003'], 3).height, model.similar_items([50003]).height)"
    assert forked(run, ask)[0] == "3 10"


def test_a_forked_child_knows_users_that_nobody_asked_for_before(run):
    child, parent = forked(run, "print(model.recommend([1001], 3)['item_id'].to_list())")
    assert child == parent and child.startswith("[")


def test_what_the_child_cannot_read_it_says(run, tmp_path):
    folder = write_table(tmp_path / "users", pl.Series(["a", "b"]))
    child, parent = forked(run, f"print(Vocabulary.open({str(folder)!r}).rows(['a']))")
    assert child.startswith("RunError") and "users" in child and "the spawn method" in child
    assert parent.startswith("[")
