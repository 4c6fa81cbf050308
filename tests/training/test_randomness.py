import random

import numpy as np
import pytest
import torch
from small_training import small_config, small_train

from blossomrec.recommender import BlossomRec
from blossomrec.training import TrainingInterrupted, trainer
from blossomrec.training.state import seeded
from small_options import SMALL


def draw():
    """What the three global generators give next."""
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def seed_all(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture
def undisturbed():
    """Six draws of generators seeded with 42, which are then seeded again."""
    seed_all(42)
    wanted = [draw() for _ in range(2)]
    seed_all(42)
    return wanted


def test_a_seed_holds_within_and_the_generators_go_on_afterwards(undisturbed):
    found = [draw()]
    with seeded(7):
        first = draw()
    with seeded(7):
        assert draw() == first
    assert [*found, draw()] == undisturbed
    assert first not in undisturbed


def test_the_generators_go_on_after_an_exception(undisturbed):
    found = [draw()]
    with pytest.raises(RuntimeError), seeded(7):
        raise RuntimeError
    assert [*found, draw()] == undisturbed


def test_only_the_device_of_the_training_is_seeded(monkeypatch):
    # torch.manual_seed would seed a GPU that is started later.
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: pytest.fail("seeded"))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    with seeded(7):
        pass


def test_fit_leaves_the_generators_as_they_were(undisturbed, tiny_log):
    found = [draw()]
    BlossomRec(**SMALL).fit(tiny_log, progress=False)
    assert [*found, draw()] == undisturbed


def test_training_leaves_the_generators_as_they_were(undisturbed, tiny_log, tmp_path, monkeypatch):
    small_train(tiny_log, small_config(epochs=1), tmp_path / "run")
    seed_all(42)

    def interrupted(self, step):
        raise TrainingInterrupted(15)

    found = [draw()]
    monkeypatch.setattr(trainer.Trainer, "_take", interrupted)
    with pytest.raises(TrainingInterrupted):
        BlossomRec(small_config(epochs=2)).fit(tiny_log, tmp_path / "run", progress=False)
    assert [*found, draw()] == undisturbed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_generator_of_a_gpu_goes_on_as_well():
    device = torch.device("cuda", 0)
    torch.cuda.manual_seed(42)
    wanted = torch.rand(1, device=device)
    torch.cuda.manual_seed(42)
    with seeded(7, device):
        first = torch.rand(1, device=device)
    with seeded(7, device):
        assert torch.equal(torch.rand(1, device=device), first)
    assert torch.equal(torch.rand(1, device=device), wanted)
