"""Padded groups of packed histories."""

import torch

from blossomrec.attention.buckets import FIRST_EDGE, Buckets


def make_buckets(lengths: list[int]) -> Buckets:
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return Buckets.of(cu_seqlens, sum(lengths), max(lengths))


def test_groups_hold_histories_padded_at_their_end():
    buckets = make_buckets([20, 1, 0, 3, 18])
    x = torch.arange(1.0, 43.0)[:, None]
    assert [each[..., 0].tolist() for each in buckets.pad(x)] == [
        [[21, 0, 0], [0, 0, 0], [22, 23, 24]],
        [list(range(1, 21)), [*range(25, 43), 0, 0]],
    ]
    assert torch.equal(buckets.unpad(buckets.pad(x)), x)


def test_a_history_is_padded_to_less_than_twice_its_length_or_the_first_edge():
    lengths = torch.randint(1, 3000, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    buckets = make_buckets(lengths)
    assert sum(count for count, _ in buckets.shapes) == 400
    for (count, longest), members in zip(buckets.shapes, buckets.lengths, strict=True):
        assert len(members) == count
        assert longest == members.max()
        assert longest < max(2 * members.min(), FIRST_EDGE["cpu"] + 1)
