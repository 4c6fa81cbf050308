"""Where things begin in a packed batch, by kernels and by their definition."""

from itertools import pairwise

import pytest
import torch

pytest.importorskip("triton")

from blossomrec.attention import packing
from blossomrec.attention.backends.gpu import geometry
from blossomrec.attention.rotary import rotate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCHES = {
    "ragged": [0, 1, 15, 16, 17, 33, 80, 0, 2, 100, 48, 3, 0],
    "one": [70],
    "short": [3, 0, 5],
    "many": [each % 7 * 5 for each in range(70)],
    "none": [],
}


@pytest.fixture(params=BATCHES.values(), ids=BATCHES)
def cu_seqlens(request, monkeypatch):
    monkeypatch.setattr(geometry, "HISTORIES", 32)
    return torch.tensor([0, *request.param], device=DEVICE).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("tile, together", [(16, 1), (64, 1), (16, 4)])
def test_every_row_has_one_tile(cu_seqlens, tile, together):
    expected, blocks = [], 0
    for history, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        for number in range(-(-(end - start) // tile)):
            expected.append([start, end - start, number, history, blocks])
        blocks += (end - start) // 16
    table = geometry.tile_table(cu_seqlens, int(cu_seqlens[-1]), tile, 16, together)
    assert len(table) % together == 0
    assert table.dtype == torch.int32
    assert table[: len(expected)].tolist() == expected
    assert (table[len(expected) :, 1] == 0).all()


def test_blocks(cu_seqlens):
    total = int(cu_seqlens[-1])
    first = geometry.first_blocks(cu_seqlens, 16)
    assert torch.equal(first, packing.first_blocks(cu_seqlens, 16))
    rows, number, used = packing.block_rows(cu_seqlens, total, 16)
    starts, numbers = geometry.block_starts(cu_seqlens, total, 16)
    assert torch.equal(starts, rows[:, 0])
    assert torch.equal(numbers, torch.where(used, number, geometry.NO_BLOCK))


def test_angles(cu_seqlens):
    """The kernel's cosines and sines rotate as the definition does."""
    total = int(cu_seqlens[-1])
    cos, sin = geometry.cos_sin(cu_seqlens, total, 3).unbind(1)
    x = torch.randn(total, 1, 6, device=DEVICE)
    first, second = x[:, 0].split(3, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    expected = rotate(x, packing.positions(cu_seqlens, total), 1.0)[:, 0]
    torch.testing.assert_close(rotated, expected, rtol=1e-5, atol=1e-5)


def test_no_pair_is_rotated():
    bounds = torch.tensor([0, 5], dtype=torch.int32, device=DEVICE)
    assert geometry.cos_sin(bounds, 5, 0).shape == (5, 2, 0)
