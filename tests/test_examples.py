"""The programs in ``examples/``, and what they add to blossomrec."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from blossomrec.config import RunConfig, with_options
from blossomrec.data.batch import Batch
from blossomrec.errors import ConfigError, RunError
from blossomrec.losses import LOSSES
from blossomrec.measure import evaluate_run
from blossomrec.models import build_model
from blossomrec.recommender import BlossomRec
from blossomrec.rules import Candidates
from blossomrec.run.description import read_run_config
from small_options import SMALL, small_flags

pytestmark = pytest.mark.usefixtures("one_thread")
OWN = SMALL | {"backbone": "running-mean"}


def blossomrec(paths: list[Path], *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process that finds ``paths``."""
    known = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*map(str, paths), *([known] if known else [])])
    return subprocess.run(
        [sys.executable, "-m", "blossomrec", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def test_the_quickstart_shows_numbers_and_recommendations(load_example, tmp_path, capsys):
    load_example("quickstart").main(tmp_path, users=150, **SMALL)
    shown = capsys.readouterr().out
    assert shown.startswith("NDCG@10 0.") and shown.count("rank") == 2


def test_an_own_loss_trains_and_is_named_in_the_run(load_example, tmp_path, capsys):
    load_example("own_loss").main(tmp_path, users=150, **SMALL)
    assert capsys.readouterr().out.startswith("NDCG@10 with the loss hinge: 0.")
    assert read_run_config(tmp_path / "run").config.training.loss == "hinge"
    assert LOSSES.names()[-1] == "hinge"


def test_the_own_loss_is_its_definition(load_example):
    loss = load_example("own_loss").Hinge
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 4), torch.randn(9, 4)
    targets, negatives = torch.tensor([0, 1, 2, 3, 8]), torch.tensor([1, 4, 8])
    config = with_options(RunConfig(), {}).training
    found = loss(config, torch.ones(9)).of_sample(hidden, weight, targets, negatives, None)
    scores = (hidden @ weight.T).tolist()
    terms = [
        0.0 if item == target else max(0.0, 1 - row[target] + row[item])
        for row, target in zip(scores, targets.tolist(), strict=True)
        for item in negatives.tolist()
    ]
    assert found.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_an_own_reranker_gives_another_order(load_example, tmp_path, capsys):
    module = load_example("own_reranker")
    module.main(tmp_path, users=150, **SMALL)
    usual, earning = (line.partition(": ")[2] for line in capsys.readouterr().out.splitlines())
    assert usual != earning and len(json.loads(earning)) == 5
    scores = np.array([2.0, 1.9, -3.0, 9.0], np.float32)
    items = [7, 8, 9, 10]
    found = module.Margin()(Candidates(items, scores, 2, _history=lambda: [10]))
    # 0.1 e^2 is less than 1.1 e^1.9; what came last is left out.
    assert [item for item, _ in found] == [8, 7, 9]


@pytest.fixture
def fitted(own_backbone, tiny_log, tmp_path):
    """A recommender with the backbone of an installed package, and its run."""
    run = tmp_path / "run"
    return BlossomRec(**OWN | {"epochs": 4}).fit(tiny_log, run, progress=False), run


def test_an_own_backbone_trains_is_saved_and_loads(fitted, tiny_log, tmp_path):
    recommender, run = fitted
    assert type(recommender.model).__module__ == "running_mean"
    again = BlossomRec.from_pretrained(run)
    assert again.recommend(k=4).equals(recommender.recommend(k=4))
    again.save_pretrained(tmp_path / "saved")
    saved = BlossomRec.from_pretrained(tmp_path / "saved", tiny_log)
    assert saved.recommend(k=4).equals(recommender.recommend(k=4))
    untrained = BlossomRec(**OWN | {"learning_rate": 0.0}).fit(tiny_log, progress=False)
    scores = [one.evaluate().metrics["ndcg@10"] for one in (recommender, untrained)]
    assert scores[0] > scores[1]


@pytest.mark.parametrize("parts", [(30,), (1,) * 30, (7, 0, 23)])
def test_states_of_the_own_backbone_are_what_encode_gives(own_backbone, tiny_log, parts):
    torch.manual_seed(0)
    model = build_model(with_options(RunConfig(), OWN).model, 50).eval()
    items = torch.randint(50, (2, 30))
    cu_seqlens = torch.tensor([0, 30, 60], dtype=torch.int32)
    with torch.no_grad():
        whole = model.encode(Batch(items.reshape(-1), cu_seqlens, 30)).hidden.view(2, 30, 16)
    states, found = [model.start(), model.start()], []
    for new in items.split(list(parts), dim=1):
        count = new.shape[1]
        edges = torch.tensor([0, count, 2 * count], dtype=torch.int32)
        hidden, states = model.extend_batch(Batch(new.reshape(-1), edges, count), states)
        found.append(hidden.view(2, count, 16))
    torch.testing.assert_close(torch.cat(found, dim=1), whole)
    torch.testing.assert_close(torch.cat([state.query for state in states]), whole[:, -1])
    assert all(state.length == 30 and state.nbytes > 0 for state in states)


def test_the_command_line_knows_an_own_backbone(own_backbone, tiny_log, tmp_path):
    shown = blossomrec(own_backbone, "train", "--help").stdout
    assert "sasrec, bert4rec, gru4rec, mamba4rec, hstu, running-mean" in " ".join(shown.split())
    run, flags = tmp_path / "run", [*small_flags(), "--model.backbone", "running-mean"]
    done = blossomrec(own_backbone, "train", tiny_log.folder, run, *flags)
    assert done.returncode == 0, done.stderr
    assert "model: running-mean, " in done.stderr
    assert evaluate_run(run).metrics == BlossomRec.from_pretrained(run).evaluate().metrics


def test_a_run_says_what_it_needs(fitted, tiny_log, monkeypatch, own_backbone):
    _, run = fitted
    done = blossomrec([], "recommend", run, "--history", "50003")
    assert done.returncode == 2
    assert done.stderr == (
        f"blossomrec: {run / 'config.json'}: model.backbone is 'running-mean', a backbone that is "
        "not installed here: a package brings it as an entry point of the group "
        "blossomrec.backbones\n"
    )
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one != str(own_backbone[0])])
    with pytest.raises(RunError, match="'running-mean', a backbone that is not installed here"):
        BlossomRec.from_pretrained(run)
    with pytest.raises(ConfigError, match="backbone is 'running-mean': choose one of sasrec, "):
        BlossomRec(**OWN)
