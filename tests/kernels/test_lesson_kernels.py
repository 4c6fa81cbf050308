"""What the kernels make of blocks of keys, against the plain form."""

import math

import pytest
import torch

pytest.importorskip("triton")

from blossomrec import kernels
from blossomrec.attention.compress import MeanCompression, MLPCompression
from blossomrec.attention.selector import selector_loss
from blossomrec.kernels import importance
from blossomrec.kernels.lessons import block_sums

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [0, 1, 15, 16, 17, 33, 80, 0, 2, 100, 48, 3]


def packed(lengths=LENGTHS):
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)


def draw(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def with_and_without_kernels(monkeypatch, results):
    found = []
    for wanted in (True, False):
        monkeypatch.setattr(kernels, "usable", lambda x, wanted=wanted: wanted)
        found.append(results())
    return found


@pytest.mark.parametrize("window", [0, 16, 32, 48], ids=["mean", "16", "32", "48"])
@pytest.mark.parametrize("groups, size", [(2, 8), (3, 5)])
def test_compression_and_its_gradients(monkeypatch, window, groups, size):
    torch.manual_seed(0)
    compress = MeanCompression(block_size=16)
    if window:
        compress = MLPCompression(head_dim=size, block_size=16, window=window)
    compress = compress.to(DEVICE)
    k = draw(sum(LENGTHS), groups, size).requires_grad_()
    blocks = sum(length // 16 for length in LENGTHS)

    def results():
        value = compress(k, packed())[:blocks]
        leaves = [k, *compress.parameters()]
        return value, *torch.autograd.grad((value * draw(*value.shape, seed=1)).sum(), leaves)

    for one, other in zip(*with_and_without_kernels(monkeypatch, results), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [0, 32], ids=["mean", "mlp"])
def test_no_complete_block(monkeypatch, window):
    monkeypatch.setattr(kernels, "usable", lambda x: True)
    compress = MeanCompression(block_size=16)
    if window:
        compress = MLPCompression(head_dim=8, block_size=16, window=window).to(DEVICE)
    k = draw(18, 2, 8).requires_grad_()
    value = compress(k, packed([3, 15]))
    assert value.shape == (1, 2, 8)
    assert not torch.autograd.grad(0.0 * value.sum(), k)[0].any()
    assert compress(k[:0], packed([])).shape == (0, 2, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("heads, groups, size, block_size", [(4, 2, 16, 16), (3, 1, 10, 32)])
def test_block_sums(heads, groups, size, block_size, dtype):
    length = 9 * block_size + 3
    q, k = draw(2 * length, heads, size, dtype=dtype), draw(2 * length, groups, size, seed=1)
    k = k.to(dtype)
    rows = torch.tensor([[0, 5, length - 1], [length, length + 7, length + 7]], device=DEVICE)
    starts = rows[:, 0].clone()
    sums = block_sums(q, k, rows, starts, 9, block_size)
    keys = torch.stack([k[start : start + 9 * block_size] for start in starts.tolist()]).double()
    queries = q[rows].double().unflatten(2, (groups, -1))
    scores = torch.einsum("xcgrd,xjgd->xcgrj", queries, keys) / math.sqrt(size)
    expected = scores.unflatten(-1, (9, block_size)).logsumexp(-1).float()
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_lessons_of_the_selector(monkeypatch, causal):
    # Several tiles of blocks and of lessons: 18 blocks in the longest, and room for 40.
    monkeypatch.setattr(importance, "BLOCKS", 16)
    lengths = [*LENGTHS, 300]
    total = sum(lengths)
    q, k = draw(total, 4, 16).requires_grad_(), draw(total, 2, 16, seed=1)
    block_keys = draw(total // 16, 2, 16, seed=2).requires_grad_()
    rows = torch.arange(total, device=DEVICE)
    form = {"max_length": 640, "block_size": 16, "causal": causal}

    def results():
        torch.manual_seed(0)
        loss = selector_loss(q, k, block_keys, packed(lengths), rows, **form)
        return loss, *torch.autograd.grad(loss, [q, block_keys])

    for one, other in zip(*with_and_without_kernels(monkeypatch, results), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_places_for_no_row_change_no_lesson(monkeypatch):
    from blossomrec.attention.packing import first_blocks
    from blossomrec.kernels.drawing import draw_lessons

    total, drawn = sum(LENGTHS), []
    rows = torch.arange(20, 260, 3, device=DEVICE)
    before = first_blocks(packed(), 16)
    for given in (rows, torch.cat([rows, rows.new_full((70,), total)])):
        torch.manual_seed(2)
        drawn.append(draw_lessons(given, packed(), before, total, 16, 40, 12))
    for one, other in zip(*drawn, strict=True):
        assert torch.equal(one, other)
    found = drawn[0].rows.flatten().tolist()
    assert set(found) <= set(rows.tolist()) and len(set(found)) > 60


def test_a_history_of_too_many_blocks_for_one_program(monkeypatch):
    from blossomrec.kernels import lessons

    q, k = draw(100, 2, 16).requires_grad_(), draw(100, 1, 16, seed=1)
    block_keys = draw(6, 1, 16, seed=2).requires_grad_()
    rows = torch.arange(100, device=DEVICE)
    form = {"max_length": 100, "block_size": 16, "causal": True}
    monkeypatch.setattr(kernels, "usable", lambda x: True)
    found = []
    for most in (lessons.MOST_BLOCKS, 5):
        monkeypatch.setattr(lessons, "MOST_BLOCKS", most)
        torch.manual_seed(0)
        loss = selector_loss(q, k, block_keys, packed([100]), rows, **form)
        found.append([loss, *torch.autograd.grad(loss, [q, block_keys])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
