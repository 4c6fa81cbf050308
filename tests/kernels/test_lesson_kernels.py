"""What the kernels make of blocks of keys, against the plain form."""

import math

import pytest
import torch

pytest.importorskip("triton")

from blossomrec.attention import BlossomSpec, selector
from blossomrec.attention.backends.gpu import block_mass, importance
from blossomrec.attention.backends.gpu.block_mass import block_sums
from blossomrec.attention.backends.gpu.geometry import first_blocks
from blossomrec.attention.backends.gpu.parts import GpuParts
from blossomrec.attention.backends.gpu.sampling import draw_samples
from blossomrec.attention.backends.parts import Parts
from blossomrec.attention.compress import MeanCompression, MLPCompression

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = [0, 1, 15, 16, 17, 33, 80, 0, 2, 100, 48, 3]


@pytest.fixture(autouse=not torch.cuda.is_available())
def few_samples(monkeypatch):
    """Each is a program, and kernels are interpreted here."""
    monkeypatch.setattr(selector, "SAMPLES", 96)


def packed(lengths=LENGTHS):
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)


def draw(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("window", [0, 16, 32, 48], ids=["mean", "16", "32", "48"])
@pytest.mark.parametrize("groups, size", [(2, 8), (3, 5)])
def test_compression_and_its_gradients(window, groups, size):
    torch.manual_seed(0)
    compress = MeanCompression(block_size=16)
    if window:
        compress = MLPCompression(head_dim=size, block_size=16, window=window)
    compress = compress.to(DEVICE)
    k = draw(sum(LENGTHS), groups, size).requires_grad_()
    blocks = sum(length // 16 for length in LENGTHS)

    def results(parts):
        value = parts.block_keys(compress, k, packed())[:blocks]
        leaves = [k, *compress.parameters()]
        return value, *torch.autograd.grad((value * draw(*value.shape, seed=1)).sum(), leaves)

    for one, other in zip(results(GpuParts()), results(Parts()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [0, 32], ids=["mean", "mlp"])
def test_no_complete_block(window):
    compress = MeanCompression(block_size=16)
    if window:
        compress = MLPCompression(head_dim=8, block_size=16, window=window).to(DEVICE)
    k = draw(18, 2, 8).requires_grad_()
    value = GpuParts().block_keys(compress, k, packed([3, 15]))
    assert value.shape == (1, 2, 8)
    assert not torch.autograd.grad(0.0 * value.sum(), k)[0].any()
    assert GpuParts().block_keys(compress, k[:0], packed([])).shape == (0, 2, 8)


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
def test_distillation_of_the_selector(monkeypatch, causal):
    # Several tiles of blocks and of samples: 18 blocks in the longest, and room for 40.
    monkeypatch.setattr(importance, "BLOCKS", 16)
    lengths = [*LENGTHS, 300]
    total = sum(lengths)
    q, k = draw(total, 4, 16).requires_grad_(), draw(total, 2, 16, seed=1)
    block_keys = draw(total // 16, 2, 16, seed=2).requires_grad_()
    rows = torch.arange(total, device=DEVICE)
    form = {"rows": rows, "max_length": 640, "spec": BlossomSpec(causal=causal)}

    def results(parts):
        torch.manual_seed(0)
        loss = parts.selector_loss(q, k, block_keys, packed(lengths), **form)
        return loss, *torch.autograd.grad(loss, [q, block_keys])

    for one, other in zip(results(GpuParts()), results(Parts()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("top_n", [1, 2])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_samples_are_those_of_the_plain_form(causal, top_n):
    """With and without places for no row."""
    total, spec = sum(LENGTHS), BlossomSpec(causal=causal, top_n=top_n)
    rows = torch.arange(20, 260, 3, device=DEVICE)
    first = selector._first_choosing(packed(), spec)
    for given in (rows, torch.cat([rows, rows.new_full((70,), total)])):
        torch.manual_seed(2)
        expected = selector._draw(packed(), first, given, 40, 12)
        torch.manual_seed(2)
        drawn = draw_samples(given, packed(), first_blocks(packed(), 16), spec, 40, 12)
        assert torch.equal(drawn.rows, expected)
        eligible = drawn.owns if causal else drawn.numbers - (drawn.owns < drawn.numbers).long()
        assert (eligible > top_n).all()


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_no_event_has_a_choice(causal):
    """All blocks that there are would be selected, or no row is given that has more."""
    q, k = draw(200, 2, 16).requires_grad_(), draw(200, 1, 16, seed=1)
    block_keys = draw(12, 1, 16, seed=2).requires_grad_()
    for first, lengths in ((0, [70, 3, 0, 79, 48]), (150, [150, 50])):
        rows = torch.arange(first, 240, device=DEVICE).clamp(max=200)
        form = {"rows": rows, "max_length": 150, "spec": BlossomSpec(causal=causal)}
        loss = GpuParts().selector_loss(q, k, block_keys, packed(lengths), **form)
        assert loss == 0
        assert not any(each.any() for each in torch.autograd.grad(loss, [q, block_keys]))


def test_a_history_of_too_many_blocks_for_one_program(monkeypatch):
    q, k = draw(100, 2, 16).requires_grad_(), draw(100, 1, 16, seed=1)
    block_keys = draw(6, 1, 16, seed=2).requires_grad_()
    rows = torch.arange(100, device=DEVICE)
    form = {"rows": rows, "max_length": 100, "spec": BlossomSpec()}
    found = []
    for limit in (block_mass.MAX_BLOCKS, 5):
        monkeypatch.setattr(block_mass, "MAX_BLOCKS", limit)
        torch.manual_seed(0)
        loss = GpuParts().selector_loss(q, k, block_keys, packed([100]), **form)
        found.append([loss, *torch.autograd.grad(loss, [q, block_keys])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
