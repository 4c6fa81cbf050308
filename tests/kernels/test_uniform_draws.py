"""Numbers by a counter by a kernel are those of plain PyTorch; interpreted without a GPU."""

import pytest
import torch

pytest.importorskip("triton")

from blossomrec.losses import sampling
from blossomrec.losses.sampling import BLOCK, uniform

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("count", [1, BLOCK - 1, 2 * BLOCK + 3])
@pytest.mark.parametrize("seed, stream", [(0, 0), (1, 7), (-5, 1 << 40), ((1 << 63) - 1, 3)])
def test_a_kernel_draws_the_same_numbers(seed, stream, count, monkeypatch):
    monkeypatch.setattr(sampling, "usable", lambda seed: True)
    given = torch.tensor(seed, device=DEVICE), torch.tensor(stream, device=DEVICE), count
    found = uniform(*given)
    assert found.dtype == torch.float64 and torch.equal(found, uniform(*given, may_fuse=False))
