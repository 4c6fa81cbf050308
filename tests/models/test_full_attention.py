"""Dense attention over packed histories against a softmax written out."""

from __future__ import annotations

import math

import pytest
import torch

from blossomrec.models import full
from blossomrec.models.full import FullAttention, bucketed_attention, packed_attention
from largest_output import LargestOutput

LENGTHS = [33, 1, 100, 16, 2, 15, 17, 16, 1]


def boundaries(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def written_out(q, k, v, lengths, causal):
    """Softmax attention of every history in float64."""
    ratio = q.shape[1] // k.shape[1]
    q, k, v = (each.double() for each in (q, k, v))
    k, v = k.repeat_interleave(ratio, 1), v.repeat_interleave(ratio, 1)
    outputs = []
    for q_one, k_one, v_one in zip(*(each.split(lengths) for each in (q, k, v)), strict=True):
        scores = torch.einsum("thd,shd->hts", q_one, k_one) / math.sqrt(q.shape[-1])
        if causal:
            future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(future, -math.inf)
        outputs.append(torch.einsum("hts,shd->thd", scores.softmax(-1), v_one))
    return torch.cat(outputs)


def inputs(ratio: int, dtype=torch.float32, heads: int = 4, size: int = 8):
    generator = torch.Generator().manual_seed(ratio)
    return [
        torch.randn(
            sum(LENGTHS), number, size, generator=generator, dtype=dtype, requires_grad=True
        )
        for number in (heads, heads // ratio, heads // ratio)
    ]


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact.double()).norm() / exact.double().norm()).item()


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("ratio", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "budget"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_output_and_gradients_are_those_of_a_softmax(ratio, causal, dtype, budget):
    given = inputs(ratio, dtype)
    ours = bucketed_attention(*given, boundaries(LENGTHS), max(LENGTHS), causal)
    exact = written_out(*given, LENGTHS, causal)
    assert ours.dtype == dtype
    assert relative_error(ours, exact) < budget
    slope = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9), dtype=dtype)
    gradients = torch.autograd.grad(ours, given, slope)
    for gradient, wanted in zip(
        gradients, torch.autograd.grad(exact, given, slope.double()), strict=True
    ):
        assert relative_error(gradient, wanted) < budget


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_layer_turns_queries_and_keys_by_the_position_in_the_history(causal):
    torch.manual_seed(0)
    layer = FullAttention(hidden_size=32, num_heads=4, num_kv_heads=2, causal=causal).double()
    x, cu_seqlens = torch.randn(sum(LENGTHS), 32, dtype=torch.float64), boundaries(LENGTHS)
    out = layer(x, cu_seqlens, max_length=max(LENGTHS)).hidden
    place = torch.cat([torch.arange(length) for length in LENGTHS]).double()
    frequencies = 10_000.0 ** (-torch.arange(2, dtype=torch.float64) / 2)
    rotation = torch.polar(torch.ones(len(x), 2, dtype=torch.float64), place[:, None] * frequencies)

    def rotated(vectors: torch.Tensor) -> torch.Tensor:
        rotated = torch.complex(vectors[..., :2], vectors[..., 2:4]) * rotation[:, None]
        return torch.cat([rotated.real, rotated.imag, vectors[..., 4:]], -1)

    q = rotated((x @ layer.query.weight.T).view(-1, 4, 8))
    k = rotated((x @ layer.key.weight.T).view(-1, 2, 8))
    v = (x @ layer.value.weight.T).view(-1, 2, 8)
    exact = written_out(q, k, v, LENGTHS, causal).flatten(1) @ layer.output.weight.T
    # The angles are float32 numbers times positions up to 100.
    assert relative_error(out, exact) < 1e-6


def test_another_history_with_nan_changes_nothing():
    given = [each.detach() for each in inputs(2)]
    cu_seqlens = boundaries(LENGTHS)
    before = bucketed_attention(*given, cu_seqlens, max(LENGTHS), causal=False)
    for each in given:
        each[: LENGTHS[0]] = torch.nan
    after = bucketed_attention(*given, cu_seqlens, max(LENGTHS), causal=False)
    assert after[: LENGTHS[0]].isnan().all()
    assert torch.equal(after[LENGTHS[0] :], before[LENGTHS[0] :])


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_no_tensor_grows_with_the_square_of_the_length(causal):
    length = 1000
    given = [torch.randn(length, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    with LargestOutput() as largest:
        bucketed_attention(*given, boundaries([length]), length, causal).sum().backward()
    assert 0 < largest.elements < length * length / 10


def test_autocast_reaches_the_kernel_in_one_type():
    layer = FullAttention(hidden_size=32, num_heads=4, num_kv_heads=2)
    x, cu_seqlens = torch.randn(20, 32), boundaries([12, 8])
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x, cu_seqlens, max_length=12).hidden
    assert low.dtype == torch.bfloat16
    assert relative_error(low, layer(x, cu_seqlens, max_length=12).hidden) < 2e-2


@pytest.mark.parametrize(("hidden_size", "heads", "kv_heads"), [(30, 4, 2), (32, 4, 3), (12, 4, 2)])
def test_sizes_that_do_not_fit_are_named(hidden_size, heads, kv_heads):
    with pytest.raises(ValueError, match=f"hidden_size {hidden_size}.*num_kv_heads {kv_heads}"):
        FullAttention(hidden_size=hidden_size, num_heads=heads, num_kv_heads=kv_heads)


@pytest.mark.parametrize(
    "options",
    [{"window_size", "enable_gqa"}, {"window_size"}, {"is_causal"}],
    ids=["grouped", "window", "causal"],
)
def test_packed_kernel_is_called_as_its_release_allows(monkeypatch, options):
    import torch.nn.attention.varlen as varlen

    calls = []

    def kernel(q, k, v, cu_q, cu_k, max_q, max_k, **given):
        assert given.pop("window_size", (-1, 0)) == (-1, 0)
        assert given.pop("is_causal", True)
        assert k.shape[1] == (2 if given.pop("enable_gqa", False) else q.shape[1])
        assert not given
        calls.append(max_q)
        k, v = (each[:, :: each.shape[1] // 2] for each in (k, v))
        return bucketed_attention(q, k, v, cu_q, max_q, True)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(full, "_packed_kernel_options", lambda: frozenset(options))
    given = inputs(2)
    out = packed_attention(*given, boundaries(LENGTHS), max(LENGTHS), True)
    assert calls == [100]
    assert relative_error(out, written_out(*given, LENGTHS, True)) < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("ratio", [1, 4])
@pytest.mark.parametrize("attend", [packed_attention, bucketed_attention])
def test_gpu_output_and_gradients(attend, ratio, causal):
    exact_inputs = inputs(ratio, torch.float64, size=16)
    given = [each.detach().to("cuda", torch.bfloat16).requires_grad_() for each in exact_inputs]
    ours = attend(*given, boundaries(LENGTHS).cuda(), max(LENGTHS), causal)
    exact = written_out(*exact_inputs, LENGTHS, causal)
    assert relative_error(ours.cpu(), exact) < 1e-2
    slope = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9))
    gradients = torch.autograd.grad(ours, given, slope.to("cuda", torch.bfloat16))
    wanted = torch.autograd.grad(exact, exact_inputs, slope.double())
    for gradient, right in zip(gradients, wanted, strict=True):
        assert relative_error(gradient.cpu(), right) < 2e-2
