"""What is kept for a batch is kept for that batch only."""

import gc
import weakref

import torch

from blossomrec.attention import memo
from blossomrec.attention.memo import per_batch


def counted():
    calls = []

    @per_batch
    def length(cu_seqlens, extra):
        calls.append(extra)
        return int(cu_seqlens[-1]) + extra

    return length, calls


def test_computed_once_for_a_tensor_and_arguments():
    length, calls = counted()
    cu_seqlens = torch.tensor([0, 3, 5])
    assert [length(cu_seqlens, 1), length(cu_seqlens, 1), length(cu_seqlens, 2)] == [6, 6, 7]
    assert calls == [1, 2]
    assert length(torch.tensor([0, 3, 5]), 1) == 6
    assert calls == [1, 2, 1]


def test_a_tensor_written_to_is_computed_anew():
    length, _ = counted()
    cu_seqlens = torch.tensor([0, 3, 5])
    assert length(cu_seqlens, 0) == 5
    cu_seqlens[-1] = 9
    assert length(cu_seqlens, 0) == 9


def test_what_was_known_of_other_lengths_is_let_go():
    made = []

    @per_batch
    def remember(cu_seqlens):
        made.append(cu_seqlens + 1)
        return made.pop()

    cu_seqlens = torch.tensor([0, 3, 5])
    kept = weakref.ref(remember(cu_seqlens))
    cu_seqlens.copy_(torch.tensor([0, 1, 2]))
    assert remember(cu_seqlens).tolist() == [1, 2, 3]
    gc.collect()
    assert kept() is None


def test_a_graph_keeps_what_it_knows_of_its_own_tensors_alone(monkeypatch):
    length, calls = counted()
    outside = torch.tensor([0, 3, 5])
    assert memo.of_one_graph(outside) is outside
    assert length(outside, 0) == 5
    monkeypatch.setattr(memo, "_capturing", lambda tensor: True)
    assert [length(outside, 0), length(outside, 0)] == [5, 5]
    assert calls == [0, 0, 0]
    inside = memo.of_one_graph(outside)
    assert [length(inside, 0), length(inside, 0)] == [5, 5]
    assert calls == [0, 0, 0, 0]
    other = memo.of_one_graph(outside)
    assert other is not inside
    assert length(other, 0) == 5
    assert calls == [0, 0, 0, 0, 0]


def test_inference_leaves_nothing_that_a_backward_pass_could_not_use():
    @per_batch
    def halves(cu_seqlens):
        return cu_seqlens / 2

    cu_seqlens = torch.tensor([0.0, 3.0])
    with torch.inference_mode():
        assert halves(cu_seqlens).is_inference()
        assert halves(torch.tensor([0.0, 3.0])).is_inference()
    assert not halves(cu_seqlens).is_inference()


def test_nothing_outlives_its_batch():
    made = []

    @per_batch
    def remember(cu_seqlens):
        made.append(cu_seqlens + 1)
        return made.pop()

    cu_seqlens = torch.tensor([0, 3])
    kept = weakref.ref(remember(cu_seqlens))
    assert kept() is not None
    del cu_seqlens
    gc.collect()
    assert kept() is None
