"""The kernels where they are at home: bfloat16, long histories, graphs, compilation."""

import pytest
import torch
from inputs import AWKWARD, attend, random_inputs, relative_error

from blossomrec.attention import BlossomSpec
from blossomrec.attention.api import resolve
from blossomrec.attention.spec import Heads

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
RAGGED = [*AWKWARD, 0, 2, 3_000]


@pytest.fixture(params=["triton", "cuda"])
def impl(request):
    return request.param


def needs_16_bits(impl, dtype):
    if impl == "cuda" and dtype == torch.float32:
        pytest.skip("the CUDA kernels are for 16 bits")


def outputs_and_gradients(inputs, **form):
    leaves = inputs.differentiable()
    out, _ = attend(*inputs.all(), **form)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, direction)]


def on_gpu(lengths, dtype=torch.bfloat16, **sizes):
    return random_inputs(lengths, **sizes).to("cuda", dtype)


@pytest.mark.parametrize("heads, groups, size", [(8, 2, 16), (4, 2, 64), (2, 2, 32), (8, 1, 16)])
@pytest.mark.parametrize("causal, sinks", [(True, 0), (False, 0), (True, 20), (False, 3)])
@pytest.mark.parametrize("fusion", ["gated", "union"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_parity(impl, dtype, fusion, causal, sinks, heads, groups, size):
    needs_16_bits(impl, dtype)
    if impl == "cuda" and sinks:
        pytest.skip("the CUDA kernels know no sinks")
    inputs = on_gpu(RAGGED, dtype, heads=heads, groups=groups, size=size, fusion=fusion)
    form = dict(causal=causal, sinks=sinks, fusion=fusion)
    exact = inputs.to(dtype=torch.float64)
    _, selected = attend(*exact.all(), impl="reference", **form)
    expected = outputs_and_gradients(exact, impl="reference", selected=selected, **form)
    values = outputs_and_gradients(inputs, impl=impl, selected=selected, **form)
    for name, value, other in zip(("out", "q", "k", "v", "gates"), values, expected, strict=True):
        assert relative_error(value, other) < TOLERANCE[dtype], name


@pytest.mark.parametrize("base", [1.5, 3.0, 4.0])
@pytest.mark.parametrize("heads, groups, size", [(8, 2, 16), (4, 2, 64), (8, 1, 16)], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_powers_of_other_bases(fusion, causal, heads, groups, size, base):
    sizes = dict(heads=heads, groups=groups, size=size, fusion=fusion)
    inputs = on_gpu(RAGGED, **sizes)
    form = dict(causal=causal, fusion=fusion, power_base=base)
    exact = inputs.to(dtype=torch.float64)
    _, selected = attend(*exact.all(), impl="reference", **form)
    expected = outputs_and_gradients(exact, impl="reference", selected=selected, **form)
    values = outputs_and_gradients(inputs, impl="cuda", selected=selected, **form)
    for name, value, other in zip(("out", "q", "k", "v", "gates"), values, expected, strict=True):
        assert relative_error(value, other) < TOLERANCE[torch.bfloat16], name


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("heads, groups, size, top_n", [(8, 2, 16, 4), (8, 1, 64, 32)], ids=str)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_blocks_up_to_a_share(impl, dtype, causal, heads, groups, size, top_n, share):
    needs_16_bits(impl, dtype)
    inputs = on_gpu(RAGGED, dtype, heads=heads, groups=groups, size=size)
    form = dict(causal=causal, top_n=top_n, share=share)
    _, expected = attend(*inputs.to(dtype=torch.float64).all(), impl="reference", **form)
    _, selected = attend(*inputs.all(), impl=impl, **form)
    # Few choices are so close to another, or to the share, that float32 decides.
    assert (selected != expected).any(-1).double().mean() < 1e-3


def test_studies_have_the_fastest_kernels():
    spec = BlossomSpec(share=0.8, power_base=1.5)
    assert resolve(spec, Heads(8, 2, 16), torch.bfloat16, "cuda").name == "cuda"


@pytest.mark.parametrize("fusion", ["gated", "union"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_long_history_beside_thousands_of_short_ones(impl, dtype, fusion):
    needs_16_bits(impl, dtype)
    lengths = [3] * 2_000 + [65_536, 17] + [3] * 1_000
    inputs = on_gpu(lengths, dtype, heads=8, size=16, fusion=fusion)
    exact = inputs.to(dtype=torch.float32)
    _, selected = attend(*exact.all(), impl="torch", fusion=fusion)
    expected = outputs_and_gradients(exact, impl="torch", selected=selected, fusion=fusion)
    values = outputs_and_gradients(inputs, selected=selected, impl=impl, fusion=fusion)
    for value, other in zip(values, expected, strict=True):
        assert relative_error(value, other) < TOLERANCE[dtype]


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_choice_is_the_best_by_score_margin(impl, dtype, size):
    needs_16_bits(impl, dtype)
    length = 4_000
    inputs = on_gpu([length], dtype, size=size)
    _, selected = attend(*inputs.all(), impl=impl)
    mean_q = inputs.q.double().view(length, 2, 2, size).mean(2)
    scores = torch.einsum("tgd,jgd->tgj", mean_q, inputs.block_keys.double()) / size**0.5
    own = torch.arange(length, device="cuda")[:, None] // 16
    later = torch.arange(length // 16, device="cuda") >= own
    scores = scores.masked_fill(later[:, None], -torch.inf)[80:]
    chosen = selected[80:].long()
    kept = scores.gather(-1, chosen).min(-1).values
    left = scores.scatter(-1, chosen, -torch.inf).max(-1).values
    assert (kept >= left - 1e-5).all()


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("fusion", ["gated", "union"])
def test_the_same_bits_twice(impl, fusion, size):
    inputs = on_gpu([5_000, 3, 700], heads=8, size=size, fusion=fusion)
    hub = torch.full((len(inputs.q), 2, 4), -1, dtype=torch.int32, device="cuda")
    hub[32:5_000, :, 0] = 1
    form = dict(sinks=4 if impl == "triton" else 0, impl=impl, fusion=fusion)
    for selected in (None, hub):
        first, second = (outputs_and_gradients(inputs, selected=selected, **form) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("size", [16, 64])
def test_a_graph_is_replayed_for_other_lengths(impl, size):
    inputs = on_gpu([4_000, 96], heads=8, size=size)
    inputs.block_keys = torch.randn(256, 2, size, device="cuda", dtype=torch.bfloat16)
    leaves = inputs.differentiable()

    def step():
        out, selected = attend(*inputs.all(), impl=impl)
        return [out, selected, *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for lengths in ([4_000, 96], [1, 4_095], [2_048, 2_048]):
        inputs.cu_seqlens.copy_(torch.tensor([0, *lengths]).cumsum(0))
        graph.replay()
        replayed = [x.clone() for x in captured]
        assert all(torch.equal(a, b) for a, b in zip(step(), replayed, strict=True))


def test_compiled_as_one_graph(impl):
    inputs = on_gpu([100, 333, 3], heads=8, size=16)
    leaves = inputs.differentiable()

    def loss():
        out, _ = attend(*inputs.all(), impl=impl)
        return out.float().sin().sum()

    expected = torch.autograd.grad(loss(), leaves)
    values = torch.autograd.grad(torch.compile(loss, fullgraph=True)(), leaves)
    assert all(relative_error(a, b) < 1e-2 for a, b in zip(values, expected, strict=True))
