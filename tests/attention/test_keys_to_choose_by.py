"""Block keys are made for histories that have a choice of blocks, and nothing changes by it."""

import pytest
import torch
from inputs import AWKWARD, make_layer, relative_error

from blossomrec.attention.compress import MLPCompression
from implementations import CPU


def run(lengths, impl, **options):
    """Selected blocks, and by name output, loss, and gradients of input and parameters."""
    layer = make_layer(impl=impl, **options)
    x = torch.randn(sum(lengths), 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    torch.manual_seed(2)  # of what is sampled
    found = layer(x, bounds, max_length=max(lengths), distil_rows=torch.arange(len(x)))
    (found.hidden.square().sum() + found.selector_loss).backward()
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
def test_only_of_blocks_that_are_chosen_from(impl, monkeypatch):
    seen, original = [], MLPCompression.pool

    def counted(compression, windows):
        seen.append(len(windows))
        return original(compression, windows)

    monkeypatch.setattr(MLPCompression, "pool", counted)
    for causal in (True, False):
        for lengths in ((79, 3, 80, 208), (79, 30)):
            bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
            make_layer(impl=impl, causal=causal)(torch.randn(sum(lengths), 32), bounds)
    # Four blocks are all selected, and nobody before them is left to choose the last one.
    assert seen == [12, 0, 5 + 13, 0]
