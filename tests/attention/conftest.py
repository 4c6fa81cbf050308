"""Every fresh buffer starts as NaN here, so that a place nobody wrote shows."""

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_buffers():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
