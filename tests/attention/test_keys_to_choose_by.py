"""Block keys are made for histories that have a choice of blocks, and nothing changes by it."""

import pytest
import torch
from inputs import AWKWARD, make_layer, relative_error

from blossomrec.attention.backends.cpu import parts
from blossomrec.attention.backends.cpu.compression import pooled_windows
from blossomrec.attention.compress import MLPCompression
from implementations import CPU


def run(lengths, impl, *, autocast=False, **options):
    """Selected blocks, and by name output, loss, and gradients of input and parameters.

    autocast: whether the backward pass is inside a region of bfloat16.
    """
    layer = make_layer(impl=impl, **options)
    x = torch.randn(sum(lengths), 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    torch.manual_seed(2)  # of what is sampled
    found = layer(x, bounds, max_length=max(lengths), distil_rows=torch.arange(len(x)))
    loss = found.hidden.square().sum() + found.selector_loss
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss.backward()
    leaves = {"x": x, **dict(layer.named_parameters())}
    results = {name: each.grad for name, each in leaves.items()}
    results |= {"hidden": found.hidden.detach(), "loss": found.selector_loss.detach()}
    return found.selected, results


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("fusion", ["gated", "union"])
@pytest.mark.parametrize("compress", ["mlp", "mean"])
@pytest.mark.parametrize(
    "lengths",
    [AWKWARD, (79, 3, 17), (95, 64, 200, 80, 96, 1), (130, 90), (12, 20)],
    ids=lambda lengths: "+".join(map(str, lengths)),
)
@pytest.mark.parametrize("impl", [CPU])
def test_as_with_the_keys_of_all_blocks(lengths, compress, fusion, causal, impl):
    options = {"compress": compress, "fusion": fusion, "causal": causal}
    selected, found = run(lengths, impl, **options)
    chosen, expected = run(lengths, "reference", **options)
    assert torch.equal(selected, chosen)
    for name, exact in expected.items():
        assert found[name] is not None, name
        assert relative_error(found[name], exact) < 1e-4, name


@pytest.mark.parametrize("impl", [CPU])
def test_backward_inside_autocast(impl):
    _, found = run((200, 220), impl, compress="mlp", autocast=True)
    _, expected = run((200, 220), impl, compress="mlp")
    for name, exact in expected.items():
        # What PyTorch itself multiplies backward has 8 bits then.
        assert relative_error(found[name], exact) < 2e-2, name


@pytest.mark.parametrize("impl", [CPU])
def test_only_of_blocks_that_are_chosen_from(impl, monkeypatch):
    seen, original = [], parts.pooled_windows

    def counted(compression, k, windows):
        seen.append([*map(len, windows)])
        return original(compression, k, windows)

    monkeypatch.setattr(parts, "pooled_windows", counted)
    for causal in (True, False):
        for lengths in ((79, 3, 80, 208), (79, 30)):
            bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
            make_layer(impl=impl, causal=causal)(torch.randn(sum(lengths), 32), bounds)
    # Four blocks are all selected, and nobody before them is left to choose the last one.
    # Before the first block of a history there is nothing.
    assert seen == [[1, 11], [0, 0], [2, 16], [0, 0]]


@pytest.mark.parametrize("taught", [(), (3,), (0, 2, 5), (1, 2, 3, 4), range(6)], ids=str)
def test_backward_only_of_windows_with_a_gradient(taught):
    """To the same numbers."""
    torch.manual_seed(0)
    compression = MLPCompression(head_dim=8, block_size=16, window=32)
    k, starts = torch.randn(100, 2, 8), torch.tensor([-16, 48, 0, 16, 60, -7])[:, None]
    rows = starts + torch.arange(32)
    rows[:2, :16] = 100  # nothing is before these blocks
    rows[rows < 0] = 100
    windows = rows[:2, 16:], rows[2:]
    direction = torch.zeros(6, 2, 8)
    direction[list(taught)] = torch.randn(len(taught), 2, 8)
    results = []
    for pooled in (compression_of_windows, pooled_windows):
        leaves = [k.clone().requires_grad_(), *compression.parameters()]
        found = pooled(compression, leaves[0], windows)
        results.append([found.detach(), *torch.autograd.grad((found * direction).sum(), leaves)])
    for exact, found in zip(*results, strict=True):
        assert relative_error(found, exact) < 1e-5 if exact.any() else not found.any()


def compression_of_windows(compression, k, windows):
    padded = torch.cat((k, torch.zeros(1, *k.shape[1:])))
    first, others = windows
    rows = torch.cat((torch.nn.functional.pad(first, (16, 0), value=len(k)), others))
    return compression.pool(padded[rows].transpose(1, 2))
