"""The kernels around the attention against the plain form, interpreted where there is no GPU."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from blossomrec.attention import BlossomAttention, BlossomSpec, selector
from blossomrec.attention.backends import Backend
from blossomrec.attention.backends import torch as torch_backend
from blossomrec.attention.backends.gpu import activation
from blossomrec.attention.backends.gpu.parts import GpuParts
from blossomrec.attention.backends.parts import Parts
from blossomrec.config import ModelConfig
from blossomrec.models import fused
from blossomrec.models.fused import feed_forward
from blossomrec.models.fused import norm as norm_kernels
from blossomrec.models.fused.dropout import constants
from blossomrec.models.fused.feed_forward import feed_forward_norm
from blossomrec.models.fused.norm import add_norm, layer_norm
from blossomrec.models.transformer import TransformerLayer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3}
SIZES = [(1, 8), (17, 16), (40, 50), (33, 128), (5, 300)]


def draw(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def relative_error(value, exact):
    value, exact = value.detach().double(), exact.detach().double()
    return float((value - exact).norm() / exact.norm().clamp(min=1e-30))


def shaken(module):
    """A copy on the device whose parameters are all away from their start values."""
    module = copy.deepcopy(module).to(DEVICE)
    for number, parameter in enumerate(module.parameters()):
        noise = draw(*parameter.shape, seed=number + 10)
        parameter.data += 0.3 * noise
    return module


def computed_by(parts):
    """A layer's ``backend``: the operation in PyTorch, and these parts around it."""
    return lambda x: Backend("torch", torch_backend.attend, parts)


def with_kernels(layer):
    layer.attention.backend = computed_by(GpuParts())
    return layer


def gradients(out, leaves, seed=5):
    return torch.autograd.grad(out, leaves, draw(*out.shape, seed=seed, dtype=out.dtype))


def few_programs(monkeypatch):
    """So few that each goes through several tiles."""
    for module in (activation, norm_kernels):
        monkeypatch.setattr(module, "PROGRAMS", 2)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows, size", SIZES)
def test_layer_norm(rows, size, dtype, monkeypatch):
    few_programs(monkeypatch)
    norm = shaken(nn.LayerNorm(size))
    x = draw(rows, size, seed=1, dtype=dtype).requires_grad_()
    out = layer_norm(x, norm)
    assert out.dtype == dtype
    exact, leaf = copy.deepcopy(norm).double(), x.detach().double().requires_grad_()
    expected = exact(leaf)
    assert relative_error(out, expected) < TOLERANCE[dtype]
    ours = gradients(out, [x, *norm.parameters()])
    theirs = gradients(expected, [leaf, *exact.parameters()])
    for one, other in zip(ours, theirs, strict=True):
        assert relative_error(one, other) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows, size", SIZES)
def test_add_norm(rows, size, dtype, monkeypatch):
    few_programs(monkeypatch)
    norm = shaken(nn.LayerNorm(size))
    x, branch = (draw(rows, size, seed=each, dtype=dtype).requires_grad_() for each in (1, 2))
    out = add_norm(x, branch, norm, 0.0)
    assert out.dtype == dtype
    exact, leaves = copy.deepcopy(norm).double(), [x.double(), branch.double()]
    leaves = [each.detach().requires_grad_() for each in leaves]
    expected = exact(leaves[0] + leaves[1])
    assert relative_error(out, expected) < TOLERANCE[dtype]
    ours = gradients(out, [x, branch, *norm.parameters()])
    theirs = gradients(expected, [*leaves, *exact.parameters()])
    for one, other in zip(ours, theirs, strict=True):
        assert relative_error(one, other) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    "rows, size, inner, chunk", [(19, 16, 24, 8), (33, 50, 130, 100), (3, 8, 2_500, 3)]
)
def test_feed_forward_norm(rows, size, inner, chunk, dtype, monkeypatch):
    monkeypatch.setattr(feed_forward, "CHUNK", chunk)
    few_programs(monkeypatch)
    parts = [shaken(nn.Linear(size, inner)), shaken(nn.Linear(inner, size))]
    norm = shaken(nn.LayerNorm(size))
    x = draw(rows, size, dtype=dtype).requires_grad_()
    with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
        out = feed_forward_norm(x, *parts, norm, 0.0)
    exact = [copy.deepcopy(each).double() for each in (*parts, norm)]
    leaf = x.detach().double().requires_grad_()
    expected = exact[2](leaf + exact[1](nn.functional.gelu(exact[0](leaf))))
    assert relative_error(out, expected) < TOLERANCE[dtype]
    ours = gradients(out, [x, *(p for each in (*parts, norm) for p in each.parameters())])
    theirs = gradients(expected, [leaf, *(p for each in exact for p in each.parameters())])
    for one, other in zip(ours, theirs, strict=True):
        assert relative_error(one, other) < 4 * TOLERANCE[dtype]


def test_dropout_is_as_frequent_as_asked_and_the_same_backward():
    """With a norm that changes nothing but the mean and scale, what is dropped shows."""
    rows, size, p = 2_000, 64, 0.2
    norm = nn.LayerNorm(size).to(DEVICE)
    x = torch.zeros(rows, size, device=DEVICE)
    branch = (1.0 + draw(rows, size).abs()).requires_grad_()
    torch.manual_seed(3)
    out = add_norm(x, branch, norm, p)
    # A dropped place is zero, which is the least of its row.
    dropped = out == out.min(1, keepdim=True).values
    share = dropped.float().mean().item()
    assert abs(share - p) < 4 * (p * (1 - p) / out.numel()) ** 0.5
    (grad,) = gradients(out, [branch])
    assert torch.equal(grad == 0, dropped)
    kept = constants(p)["KEPT"]
    expected = norm(torch.where(dropped, 0.0, branch * kept))
    assert relative_error(out, expected) < 1e-5
    assert relative_error(grad, gradients(expected, [branch])[0]) < 1e-5
    # No two rows or columns are dropped alike.
    assert len(dropped.unique(dim=0)) == rows
    correlation = torch.corrcoef(dropped.double().T).fill_diagonal_(0).abs().max()
    assert correlation < 6 / rows**0.5


def test_dropout_follows_the_generator():
    norm, x = nn.LayerNorm(16).to(DEVICE), draw(9, 16)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(add_norm(x, x, norm, 0.5))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    assert not torch.equal(add_norm(x, x, norm, 0.5), outs[2])


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_all_or_nothing_is_dropped(p):
    norm, x = nn.LayerNorm(16).to(DEVICE), draw(9, 16)
    branch = draw(9, 16, seed=1).requires_grad_()
    out = add_norm(x, branch, norm, p)
    assert relative_error(out, norm(x + (1 - p) * branch)) < 1e-6
    assert gradients(out, [branch])[0].any() == (p == 0)


@pytest.mark.parametrize(
    "form", [{}, {"gate": "convex"}, {"paths": "long"}, {"fusion": "union"}], ids=str
)
@pytest.mark.parametrize(
    "heads, groups, size, share", [(4, 2, 16, 0.5), (3, 1, 10, 1.0), (6, 3, 4, 0.0)]
)
def test_projections(monkeypatch, heads, groups, size, share, form):
    attention = BlossomAttention(
        hidden_size=heads * size,
        num_heads=heads,
        num_kv_heads=groups,
        spec=BlossomSpec(rotary_share=share, **form),
    )
    attention = shaken(attention)
    cu_seqlens = torch.tensor([0, 5, 5, 38, 39], dtype=torch.int32, device=DEVICE)
    x = draw(39, heads * size).requires_grad_()
    leaves = [x, attention.query.weight, attention.key.weight, attention.value.weight]
    if attention.gate is not None:
        leaves += [attention.gate.weight, attention.gate.bias]

    def results(parts):
        monkeypatch.setattr(attention, "backend", computed_by(parts))
        found = attention.project(x, cu_seqlens)
        total = sum((draw(*each.shape, seed=9) * each).sum() for each in found)
        return *found, *torch.autograd.grad(total, leaves)

    for value, other in zip(results(GpuParts()), results(Parts()), strict=True):
        assert value.shape == other.shape
        assert relative_error(value, other) < 1e-5


@pytest.mark.parametrize(
    "attention, fusion", [("blossom", "gated"), ("blossom", "union"), ("full", "gated")]
)
def test_a_layer_is_the_same_with_kernels(monkeypatch, attention, fusion):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "heads": 4, "kv_heads": 2, "inner_size": 48, "dropout": 0.0}
    config = ModelConfig(attention=attention, fusion=fusion, **sizes)
    layer = shaken(TransformerLayer(config, causal=True))
    cu_seqlens = torch.tensor([0, 40, 40, 97, 100], dtype=torch.int32, device=DEVICE)
    x = draw(100, 32).requires_grad_()
    distilled = torch.arange(100, device=DEVICE) if attention == "blossom" else None

    def results(kernels):
        monkeypatch.setattr(fused, "usable", lambda x: kernels)
        if attention == "blossom":
            parts = GpuParts() if kernels else Parts()
            monkeypatch.setattr(layer.attention, "backend", computed_by(parts))
        torch.manual_seed(1)
        out, attended = layer(x, cu_seqlens, 57, distil_rows=distilled)
        out = layer.finish(out)
        total = (out * draw(100, 32, seed=4)).sum()
        if distilled is not None:
            total = total + attended.selector_loss
        return out, *torch.autograd.grad(total, [x, *layer.parameters()])

    for value, other in zip(results(True), results(False), strict=True):
        assert relative_error(value, other) < 1e-4


def test_a_layer_under_autocast_keeps_rows_in_16_bits(monkeypatch):
    monkeypatch.setattr(fused, "usable", lambda x: True)
    config = ModelConfig(hidden_size=32, heads=4, kv_heads=2, inner_size=48, dropout=0.1)
    layer = with_kernels(TransformerLayer(config, causal=True).to(DEVICE))
    cu_seqlens = torch.tensor([0, 20], dtype=torch.int32, device=DEVICE)
    x = draw(20, 32).requires_grad_()
    with torch.autocast(DEVICE, torch.float16):
        out = layer.finish(layer(x, cu_seqlens, 20)[0])
    assert out.dtype == torch.float16
    gradients = torch.autograd.grad(out.float().square().sum(), [x, *layer.inner.parameters()])
    assert {each.dtype for each in gradients} == {torch.float32}
    assert all(each.isfinite().all() for each in gradients)


def kept_bytes(config, rows=2_048):
    """Memory kept for the backward pass of a layer with distillation, its parameters left out."""
    layer = with_kernels(TransformerLayer(config, causal=True).to(DEVICE))
    cu_seqlens = torch.tensor([0, rows], dtype=torch.int32, device=DEVICE)
    x, distilled = draw(rows, config.hidden_size).requires_grad_(), torch.arange(32, device=DEVICE)
    own = {each.untyped_storage().data_ptr() for each in layer.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast(DEVICE, torch.float16),
    ):
        layer.finish(layer(x, cu_seqlens, rows, distil_rows=distilled)[0])
    return sum(size for size, _ in kept.values())


def test_windows_of_keys_are_not_kept(monkeypatch):
    """Pooling by a perceptron keeps no more than by means: its windows are four times the keys."""
    monkeypatch.setattr(fused, "usable", lambda x: True)
    # Both keep the same of each sample, and kernels are interpreted here.
    monkeypatch.setattr(selector, "SAMPLES", 64)
    sizes = {"hidden_size": 32, "heads": 4, "kv_heads": 2, "inner_size": 48, "dropout": 0.1}
    mean, mlp = (kept_bytes(ModelConfig(compress=way, **sizes)) for way in ("mean", "mlp"))
    keys = 2_048 * 2 * 8 * 2
    weights = 2 * (256 * 256 + 256 * 8 + 32 * 8 + 256)
    assert mlp - mean < weights + keys
