"""Fixtures of the training room."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from blossomrec.config import EvaluationConfig
from blossomrec.data.split import Split, make_split
from blossomrec.training import trainer


@pytest.fixture(autouse=True)
def every_training_on_one_thread(one_thread):
    """Sums in the same order everywhere, and no more cores than other tests."""


@pytest.fixture
def at_step(monkeypatch) -> Callable[[int, Callable[[], None]], None]:
    """Arrange that something happens just before the n-th step of the next training."""

    def arrange(step: int, happening: Callable[[], None]) -> None:
        original, seen = trainer.device_steps, [0]

        def device_steps(*arguments):
            for one in original(*arguments):
                seen[0] += 1
                if seen[0] == step:
                    happening()
                yield one

        monkeypatch.setattr(trainer, "device_steps", device_steps)

    return arrange


@pytest.fixture(scope="session")
def split(tiny_log) -> Split:
    """The leave-one-out split of the tiny log."""
    return make_split(tiny_log, EvaluationConfig())
