"""Where things begin in a packed batch, by kernels and by their definition."""

import pytest
import torch

pytest.importorskip("triton")

from blossomrec import kernels
from blossomrec.attention.compress import _starts_and_numbers
from blossomrec.attention.geometry import tile_table
from blossomrec.attention.packing import first_blocks
from blossomrec.attention.rotary import turns
from blossomrec.kernels import geometry

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCHES = {
    "ragged": [0, 1, 15, 16, 17, 33, 80, 0, 2, 100, 48, 3, 0],
    "one": [70],
    "short": [3, 0, 5],
    "many": [each % 7 * 5 for each in range(70)],
}


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("tile", [16, 64])
def test_kernels_answer_as_the_definition(monkeypatch, lengths, tile):
    monkeypatch.setattr(geometry, "HISTORIES", 32)
    total, found = sum(lengths), []
    for wanted in (True, False):
        monkeypatch.setattr(kernels, "place_rows", lambda cu_seqlens, wanted=wanted: wanted)
        cu_seqlens = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)
        found.append(
            (
                tile_table(cu_seqlens, total, tile, 16),
                first_blocks(cu_seqlens, 16),
                *_starts_and_numbers(cu_seqlens, total, 16),
                turns(cu_seqlens, total, 3),
            )
        )
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_no_pair_is_turned(monkeypatch):
    monkeypatch.setattr(kernels, "place_rows", lambda cu_seqlens: True)
    assert turns(torch.tensor([0, 5], dtype=torch.int32, device=DEVICE), 5, 0).shape == (5, 2, 0)
