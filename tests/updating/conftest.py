"""Worlds that were begun once, as copies that tests may change."""

from __future__ import annotations

import pytest
from daily_world import World

from blossomrec.updating.runs import Runs


@pytest.fixture(scope="session")
def begun(tmp_path_factory, one_thread):
    """After the first update. Read only."""
    world = World(tmp_path_factory.mktemp("begun")).begin()
    assert world.update()["taken"]
    return world


@pytest.fixture
def world(begun, tmp_path):
    """After the first update, a copy."""
    folder = tmp_path / "world"
    return begun.copy(folder)


@pytest.fixture
def runs(world):
    return Runs(world.runs)
