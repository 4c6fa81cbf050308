"""Every implementation against the reference: outputs, selection and all gradients."""

import pytest
import torch
from inputs import AWKWARD, attend, random_inputs, relative_error

from blossomrec.attention.backends import torch as torch_backend
from blossomrec.attention.backends.cpu import operators
from blossomrec.attention.backends.torch import selection, sparse
from implementations import CPU

IMPLEMENTATIONS = ["torch", CPU]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
RAGGED = [*AWKWARD, 0, 2, 160]
FUSIONS = pytest.mark.parametrize("fusion", ["gated", "union"])


def outputs_and_gradients(inputs, impl, **options):
    leaves = inputs.differentiable()
    out, selected = attend(*inputs.all(), impl=impl, **options)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, direction)], selected


LIMITS = {"dense": 1_000_000, "sparse": 0, "mixed": 80}
WAYS = [
    *(f"torch-{way}" for way in LIMITS),
    *(pytest.param(f"cpu-{way}", marks=CPU.marks) for way in LIMITS),
]


@pytest.fixture(params=WAYS)
def impl(request, monkeypatch):
    """Each implementation with every history on either of its ways."""
    name, way = request.param.split("-")
    limit = LIMITS[way]
    monkeypatch.setitem(torch_backend.DENSE_LENGTH, "cpu", limit)
    monkeypatch.setattr(operators, "SHORT_LENGTHS", {64: (limit, limit)})
    return name


@FUSIONS
@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_outputs_and_gradients(impl, dtype, causal, sinks, fusion):
    inputs = random_inputs(RAGGED, fusion=fusion, dtype=dtype)
    form = dict(causal=causal, sinks=sinks, fusion=fusion)
    if impl == "cpu" and dtype != torch.float32:
        with pytest.raises(ValueError, match=f"the type is {dtype}"):
            attend(*inputs.all(), impl=impl, **form)
        return
    _, selected = attend(*inputs.all(), impl="reference", **form)
    # In low precision the exact values are those of the same rounded inputs in float64.
    exact = inputs.to(dtype=torch.float64)
    expected, _ = outputs_and_gradients(exact, "reference", selected=selected, **form)
    values, _ = outputs_and_gradients(inputs, impl, selected=selected, **form)
    for name, value, other in zip(("out", "q", "k", "v", "gates"), values, expected, strict=True):
        assert relative_error(value, other) < TOLERANCE[dtype], name


@FUSIONS
@pytest.mark.parametrize(
    "heads, groups, size", [(1, 1, 2), (8, 2, 16), (4, 4, 32), (6, 1, 64), (8, 1, 16), (2, 1, 13)]
)
def test_head_layouts(impl, heads, groups, size, fusion):
    inputs = random_inputs([70, 200], heads=heads, groups=groups, size=size, fusion=fusion)
    expected, chosen = outputs_and_gradients(inputs, "reference", fusion=fusion)
    values, selected = outputs_and_gradients(inputs, impl, fusion=fusion)
    assert (selected == chosen).all()
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(values, expected, strict=True))


@FUSIONS
@pytest.mark.parametrize(
    "block_size, top_n, window", [(8, 1, 1), (4, 7, 3), (32, 2, 16), (16, 16, 8), (20, 3, 40)]
)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_other_sizes(impl, block_size, top_n, window, causal, fusion):
    inputs = random_inputs([1, 63, 111, 300], block_size=block_size, fusion=fusion)
    sizes = dict(block_size=block_size, top_n=top_n, window=window, causal=causal, sinks=1)
    sizes["fusion"] = fusion
    expected, chosen = outputs_and_gradients(inputs, "reference", **sizes)
    values, selected = outputs_and_gradients(inputs, impl, **sizes)
    assert (selected == chosen).all()
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(values, expected, strict=True))


@FUSIONS
def test_tiles_meet_without_a_seam(impl, fusion, monkeypatch):
    inputs, form = random_inputs(RAGGED, fusion=fusion), {"sinks": 2, "fusion": fusion}
    whole, selected = outputs_and_gradients(inputs, impl, **form)
    monkeypatch.setitem(sparse.TILE_ROWS, "cpu", 37)
    monkeypatch.setitem(selection.TILE_ROWS, "cpu", 29)
    tiled, again = outputs_and_gradients(inputs, impl, **form)
    assert (selected == again).all()
    assert all(relative_error(a, b) < 1e-6 for a, b in zip(tiled, whole, strict=True))


def test_equal_scores_choose_the_lower_block(impl):
    inputs = random_inputs([160])
    inputs.block_keys[:] = 0.0
    inputs.block_keys[1::2] = -0.0
    for name in ("reference", impl):
        _, selected = attend(*inputs.all(), impl=name)
        assert (selected[-1] == torch.arange(4)).all()


@FUSIONS
def test_a_block_chosen_by_everyone(impl, fusion):
    inputs = random_inputs([333], fusion=fusion)
    hub = torch.full((333, 2, 4), -1, dtype=torch.int32)
    hub[32:, :, 0] = 1
    expected, _ = outputs_and_gradients(inputs, "reference", selected=hub, fusion=fusion)
    values, _ = outputs_and_gradients(inputs, impl, selected=hub, fusion=fusion)
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(values, expected, strict=True))


@FUSIONS
@pytest.mark.parametrize("name", ["reference", *IMPLEMENTATIONS])
def test_the_future_changes_nothing(name, fusion):
    inputs = random_inputs([333], fusion=fusion)
    before, chosen = attend(*inputs.all(), impl=name, fusion=fusion)
    other = random_inputs([333], fusion=fusion, seed=7)
    for moment in (0, 15, 16, 100, 200, 331):
        for attribute in ("q", "k", "v", "gates"):
            changed = getattr(inputs, attribute).clone()
            changed[moment + 1 :] = getattr(other, attribute)[moment + 1 :]
            setattr(other, attribute, changed)
        blocks = (moment + 1) // 16
        other.block_keys = torch.cat((inputs.block_keys[:blocks], other.block_keys[blocks:]))
        after, selected = attend(*other.all(), impl=name, fusion=fusion)
        assert torch.equal(after[: moment + 1], before[: moment + 1])
        assert torch.equal(selected[: moment + 1], chosen[: moment + 1])
        other = random_inputs([333], fusion=fusion, seed=moment + 8)


@FUSIONS
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("name", ["reference", *IMPLEMENTATIONS])
def test_packed_histories_do_not_meet(name, causal, fusion):
    inputs, form = random_inputs(RAGGED, fusion=fusion), {"causal": causal, "fusion": fusion}
    together, chosen = attend(*inputs.all(), impl=name, **form)
    bounds = inputs.cu_seqlens.tolist()
    for number in range(len(RAGGED)):
        alone, selected = attend(*inputs.history(number).all(), impl=name, **form)
        rows = slice(bounds[number], bounds[number + 1])
        assert torch.equal(selected, chosen[rows])
        assert relative_error(alone, together[rows]) < 1e-6


def test_the_choice_is_the_best_by_score_margin(impl):
    dtype = torch.float32 if impl == "cpu" else torch.bfloat16
    inputs = random_inputs([1000], dtype=dtype)
    _, selected = attend(*inputs.all(), impl=impl)
    mean_q = inputs.q.double().view(1000, 2, 2, 8).mean(2)
    scores = torch.einsum("tgd,jgd->tgj", mean_q, inputs.block_keys.double()) / 8**0.5
    own = torch.arange(1000)[:, None] // 16
    scores = scores.masked_fill((torch.arange(62) >= own)[:, None], -torch.inf)
    rows = torch.arange(1000) >= 80
    kept = scores[rows].gather(-1, selected[rows].long()).min(-1).values
    left = scores[rows].scatter(-1, selected[rows].long(), -torch.inf).max(-1).values
    assert (kept >= left - 1e-5).all()


def test_an_empty_batch(impl):
    inputs = random_inputs([])
    out, selected = attend(*inputs.all(), impl=impl)
    assert out.shape == (0, 4, 8)
    assert selected.shape == (0, 2, 4)


@FUSIONS
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("limit", [0, 100, 1_000_000], ids=["sparse", "mixed", "dense"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu(dtype, causal, limit, fusion, monkeypatch):
    torch.use_deterministic_algorithms(False)
    monkeypatch.setitem(torch_backend.DENSE_LENGTH, "cuda", limit)
    inputs = random_inputs([*RAGGED, 3_000], heads=8, size=16, fusion=fusion).to("cuda", dtype)
    form = dict(causal=causal, sinks=2, fusion=fusion)
    _, selected = attend(*inputs.all(), impl="torch", **form)
    exact = inputs.to(dtype=torch.float64)
    expected, _ = outputs_and_gradients(exact, "reference", selected=selected, **form)
    values, _ = outputs_and_gradients(inputs, "torch", selected=selected, **form)
    for name, value, other in zip(("out", "q", "k", "v", "gates"), values, expected, strict=True):
        # PyTorch rounds the gradient of a mask before it is summed to that of the bias in it: terms
        # of both signs, whose sum is smaller than they are.
        rounded_twice = name == "gates" and fusion == "union" and limit > 0
        assert relative_error(value, other) < TOLERANCE[dtype] * (1 + rounded_twice), name


@pytest.mark.parametrize("fusion", ["gated", "union"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("options", [{"share": 0.3}, {"power_base": 2.7}], ids=str)
def test_other_selections_and_patterns(impl, options, causal, fusion):
    inputs = random_inputs(RAGGED, fusion=fusion)
    form = dict(causal=causal, sinks=3, fusion=fusion, **options)
    if impl == "cpu":
        (name, value), *_ = options.items()
        with pytest.raises(ValueError, match=f"{name} is {value}, the operator takes"):
            attend(*inputs.all(), impl=impl, **form)
        return
    expected, chosen = outputs_and_gradients(inputs, "reference", **form)
    values, selected = outputs_and_gradients(inputs, impl, **form)
    assert (selected == chosen).all()
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(values, expected, strict=True))
