"""The command line of the benchmarks, run in this process."""

from __future__ import annotations

import functools

import pytest

from benchmarks.__main__ import main
from command_line import refuse, succeed


@pytest.fixture
def benchmarks(capsys):
    """Runs ``python -m benchmarks``, which must succeed."""
    return functools.partial(succeed, capsys, run=main)


@pytest.fixture
def refused(capsys):
    """Runs ``python -m benchmarks``, which must refuse what it is given."""
    return functools.partial(refuse, capsys, run=main, name="benchmarks")
