"""Sums of rows by their numbers by kernels, against adding them one by one; interpreted without a
GPU."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")

from blossomrec.models import fused
from blossomrec.models.fused import embedding as modules
from blossomrec.models.fused.embedding import (
    FEW,
    PARTS,
    ROWS,
    Ordered,
    embedding,
    embedding_bag,
    row_sums,
    summed_once,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def numbers(form, count, num_rows):
    generator = torch.Generator().manual_seed(count)
    drawn = torch.randint(num_rows, (count,), generator=generator)
    return {
        "drawn": drawn,
        "one": torch.full_like(drawn, num_rows - 1),
        "two": torch.where(torch.arange(count) < count // 2, 3, 0),
        "most": torch.where(drawn % 3 == 0, drawn, num_rows // 2),
    }[form]


@pytest.mark.parametrize("form", ["drawn", "one", "two", "most"])
@pytest.mark.parametrize("count", [1, ROWS, ROWS + 1, 5 * ROWS, (2 * PARTS + 1) * ROWS + 7])
@pytest.mark.parametrize("size, num_rows", [(16, 40), (150, 40), (16, FEW + 1)])
def test_sums_are_those_of_rows_one_by_one(form, count, size, num_rows):
    index = numbers(form, count, num_rows).to(DEVICE)
    rows = torch.randn(count, size, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    found = row_sums(index, rows, num_rows)
    exact = torch.zeros(num_rows, size, dtype=torch.float64, device=DEVICE)
    exact.index_add_(0, index, rows.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)
    assert torch.equal(found, row_sums(index, rows, num_rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_and_their_gradient_are_those_of_pytorch(dtype, monkeypatch):
    monkeypatch.setattr(fused, "usable", lambda x: True)
    index = torch.tensor([[4, 0, 4], [2, 4, 0]], device=DEVICE)
    table = torch.arange(60.0).view(6, 10).to(DEVICE, dtype).requires_grad_()
    factors = torch.arange(60.0).view(2, 3, 10).to(DEVICE, dtype) / 8
    found = []
    for given in (embedding(index, table), F.embedding(index, table)):
        (gradient,) = torch.autograd.grad((given * factors).sum(), table)
        found.append((given, gradient))
    (rows, mine), (others, theirs) = found
    assert torch.equal(rows, others) and mine.dtype == theirs.dtype == dtype
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("lengths", [[3, 0, 0, 2, 1, 0], [0], [0, 90, 7]])
def test_bags_and_their_gradient_are_those_of_pytorch(lengths, monkeypatch):
    monkeypatch.setattr(fused, "usable", lambda x: True)
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(DEVICE)
    values = torch.randint(5, (sum(lengths),), generator=generator).to(DEVICE)
    table = torch.randn(6, 10, generator=generator).to(DEVICE).requires_grad_()
    factors = torch.randn(len(lengths), 10, generator=generator).to(DEVICE)
    found = []
    for given in (
        embedding_bag(values, offsets, table),
        F.embedding_bag(values, table, offsets, mode="sum", include_last_offset=True),
    ):
        found.append((given, *torch.autograd.grad((given * factors).sum(), table)))
    (sums, mine), (others, theirs) = found
    assert torch.equal(sums, others)
    torch.testing.assert_close(mine, theirs)


def test_lookups_of_one_table_are_summed_once(monkeypatch):
    monkeypatch.setattr(fused, "usable", lambda x: True)
    sums = list[int]()
    whole = modules.row_sums

    def counted(index, *given):
        sums.append(index.numel())
        return whole(index, *given)

    monkeypatch.setattr(modules, "row_sums", counted)
    table = torch.arange(60.0, device=DEVICE).view(6, 10).requires_grad_()
    some = [torch.tensor(each, device=DEVICE) for each in ([[4, 0], [2, 4]], [5], [0, 0, 1])]

    def gradient(rows_of, held):
        found = [rows_of(each, held) for each in some]
        # One of them needs no gradient, and the table is used by itself.
        loss = (found[0] ** 2).sum() + found[2].sin().sum() + (held[1] * held[2]).sum()
        return torch.autograd.grad(loss + found[1].detach().sum(), table)[0]

    ours, theirs = gradient(embedding, summed_once(table)), gradient(F.embedding, table)
    torch.testing.assert_close(ours, theirs)
    assert sums == [7]
    assert summed_once(table.detach()).requires_grad is False
    held = summed_once(table)
    (alone,) = torch.autograd.grad(held.sum(), table)
    assert torch.equal(alone, torch.ones_like(alone)) and sums == [7]
    # Lookups alone, whose gradients are asked for twice.
    squares = (embedding(some[2], summed_once(table)) ** 2).sum()
    (expected,) = torch.autograd.grad((F.embedding(some[2], table) ** 2).sum(), table)
    for _ in range(2):
        (found,) = torch.autograd.grad(squares, table, retain_graph=True)
        torch.testing.assert_close(found, expected)
    assert sums == [7, 3, 3]


def test_an_order_that_is_known_may_have_more_numbers_than_rows(monkeypatch):
    index = numbers("drawn", 3 * ROWS, 9).to(DEVICE)
    rows = torch.randn(len(index), 16).to(DEVICE)
    others = torch.tensor([3, 0, 8], device=DEVICE)
    keys, places = torch.cat([index, others]).int().sort(stable=True)
    found = row_sums(index, rows, 9, Ordered(keys, places))
    torch.testing.assert_close(found, row_sums(index, rows, 9), rtol=1e-5, atol=1e-5)


def test_no_kernel_runs_where_none_may(monkeypatch):
    monkeypatch.setattr(fused, "usable", lambda x: True)
    table = torch.zeros(3, 4, requires_grad=True)
    named = embedding(torch.tensor([1]), table, may_fuse=False).grad_fn
    assert "Embedding" in type(named).__name__ and "_Embedding" not in type(named).__name__
    assert embedding(torch.tensor([1]), table.detach()).grad_fn is None
