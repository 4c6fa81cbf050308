"""Tables that the Triton kernels read, against loops."""

import pytest
import torch
from inputs import AWKWARD

pytest.importorskip("triton")

from blossomrec.attention.backends.gpu.geometry import tile_table
from blossomrec.attention.backends.gpu.kernel_pattern import Pattern
from blossomrec.attention.backends.triton.inverse_lists import InverseLists
from blossomrec.attention.packing import block_rows
from blossomrec.attention.pattern import NearPattern

LENGTHS = [0, *AWKWARD, 0, 2]


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def packed(lengths):
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)


def test_tables_follow_lengths_that_are_written_over():
    cu_seqlens = packed([20, 12])
    before = tile_table(cu_seqlens, 32, 16, 16).clone()
    cu_seqlens.copy_(packed([2, 30]))
    assert not torch.equal(tile_table(cu_seqlens, 32, 16, 16), before)


def test_rows_of_complete_blocks():
    cu_seqlens = packed(LENGTHS)
    expected = [
        (int(start) + 16 * number, number)
        for start, length in zip(cu_seqlens, LENGTHS, strict=False)
        for number in range(length // 16)
    ]
    rows, number, used = block_rows(cu_seqlens, sum(LENGTHS), 16)
    assert int(used.sum()) == len(expected)
    assert list(zip(rows[used, 0].tolist(), number[used].tolist(), strict=True)) == expected
    assert (rows[:, -1] - rows[:, 0] == 15).all()
    assert (rows < sum(LENGTHS)).all()


@pytest.mark.parametrize("block_size", [16, 32])
@pytest.mark.parametrize("window", [1, 8, 17, 18, 40, 100])
def test_near_blocks_and_far_powers_are_the_whole_pattern(window, block_size):
    total = 5_000
    pattern = Pattern.of(block_size, window, 0, True, total)
    reach = pattern.near * block_size
    near = [d for d in NearPattern(window).distances(total) if d <= reach]
    far = [1 << (pattern.first_far + power) for power in range(pattern.far)]
    assert sorted({*near, *far}) == NearPattern(window).distances(total)


def test_inverse_lists_in_order_and_chunks():
    generator = torch.Generator().manual_seed(0)
    lists = torch.randint(0, 6, (50, 2, 3), generator=generator, dtype=torch.int32)
    lists[:, :, 0] = 3  # a list that nearly everyone is in
    lists[:2] = 5  # none
    inverse = InverseLists.of(lists, 5, chunk=16)
    flat = lists.flatten().tolist()
    chunks = []
    for number in range(5):
        expected = [place for place, owner in enumerate(flat) if owner == number]
        low, high = inverse.starts[number : number + 2].tolist()
        assert inverse.order[low:high].tolist() == expected
        chunks += [number] * max(0, -(-len(expected) // 16) - 1)
        assert inverse.chunk_starts[number + 1] == len(chunks)
    assert inverse.owners[: len(chunks)].tolist() == chunks
    assert (inverse.owners[len(chunks) :] >= 5).all()
