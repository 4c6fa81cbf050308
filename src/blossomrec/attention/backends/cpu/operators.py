"""The C++ functions as operators that PyTorch knows: autograd and ``torch.compile``."""

from __future__ import annotations

import torch
from torch import Tensor

from blossomrec.attention.backends.cpu.library import Problem, library
from blossomrec.attention.backends.operator import empty_gradients, operator, register_gradient


def _empty_select_blocks(q, block_keys, cu_seqlens, block_size, top_n, causal):
    return q.new_empty(len(q), block_keys.shape[1], top_n, dtype=torch.int32)


@operator(_empty_select_blocks)
def select_blocks(
    q: Tensor, block_keys: Tensor, cu_seqlens: Tensor, block_size: int, top_n: int, causal: bool
) -> Tensor:
    """The ``top_n`` most important blocks of each event, int32 [T, G, top_n], see the reference."""
    groups = block_keys.shape[1]
    selected = q.new_empty(len(q), groups, top_n, dtype=torch.int32)
    tensors = {
        "q": q.contiguous(),
        "block_keys": block_keys.contiguous(),
        "cu_seqlens": cu_seqlens,
        "selected": selected,
    }
    numbers = _sizes(q, cu_seqlens, groups) | {"top_n": top_n, "causal": causal}
    _run("blossom_select", q, groups, block_size, tensors, numbers)
    return selected


def _empty_block_shares(q, k, cu_seqlens, samples, blocks, block_size, causal):
    return q.new_empty(*samples.shape, k.shape[1], blocks)


@operator(_empty_block_shares)
def block_shares(
    q: Tensor,
    k: Tensor,
    cu_seqlens: Tensor,
    samples: Tensor,
    blocks: int,
    block_size: int,
    causal: bool,
) -> Tensor:
    """Share of attention that blocks get from some events, see the selector, [X, C, G, J].

    samples: integers [X, C], packed rows; blocks: J, at least those of the longest history.
    """
    groups = k.shape[1]
    shares = q.new_empty(*samples.shape, groups, blocks)
    tensors = {
        "q": q.contiguous(),
        "k": k.to(q.dtype).contiguous(),
        "cu_seqlens": cu_seqlens,
        "samples": samples.long().contiguous(),
        "shares": shares,
    }
    numbers = _sizes(q, cu_seqlens, groups)
    numbers |= {"count": samples.numel(), "blocks": blocks, "causal": causal}
    _run("blossom_samples", q, groups, block_size, tensors, numbers)
    return shares


def _empty_attend(q, k, v, gates, selected, cu_seqlens, block_size, window, sinks, causal):
    return q.new_empty(q.shape), q.new_empty(2, *q.shape[:2])


@operator(_empty_attend)
def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    selected: Tensor,
    cu_seqlens: Tensor,
    block_size: int,
    window: int,
    sinks: int,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """Both paths and the gate: out [T, H, d], and the normalisers [2, T, H] of the softmaxes."""
    out, normalisers = q.new_empty(q.shape), q.new_empty(2, *q.shape[:2])
    tensors = _inputs(q, k, v, gates, selected, cu_seqlens)
    tensors |= {"out": out, "normalisers": normalisers}
    numbers = _form(q, k, selected, cu_seqlens, window, sinks, causal)
    _run("blossom_forward", q, k.shape[1], block_size, tensors, numbers)
    return out, normalisers


@operator(empty_gradients)
def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    selected: Tensor,
    cu_seqlens: Tensor,
    normalisers: Tensor,
    block_size: int,
    window: int,
    sinks: int,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and gates."""
    grad_q, grad_k, grad_v, grad_gates = (x.new_empty(x.shape) for x in (q, k, v, gates))
    tensors = _inputs(q, k, v, gates, selected, cu_seqlens)
    tensors |= {"grad": grad.contiguous(), "normalisers": normalisers}
    tensors |= {"grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v, "grad_gates": grad_gates}
    numbers = _form(q, k, selected, cu_seqlens, window, sinks, causal)
    _run("blossom_backward", q, k.shape[1], block_size, tensors, numbers)
    return grad_q, grad_k, grad_v, grad_gates


register_gradient("cpu_attend", attend_backward, kept=1)


def _run(
    name: str,
    q: Tensor,
    groups: int,
    block_size: int,
    tensors: dict[str, Tensor],
    numbers: dict[str, int],
) -> None:
    pointers = {field: tensor.data_ptr() for field, tensor in tensors.items()}
    problem = Problem(**pointers, **numbers, threads=torch.get_num_threads())
    library(q.shape[2], q.shape[1] // groups, block_size).run(name, problem)


def _inputs(q, k, v, gates, selected, cu_seqlens) -> dict[str, Tensor]:
    rows = {"q": q, "k": k, "v": v, "gates": gates, "selected": selected}
    return {name: x.contiguous() for name, x in rows.items()} | {"cu_seqlens": cu_seqlens}


def _sizes(q: Tensor, cu_seqlens: Tensor, groups: int) -> dict[str, int]:
    return {"rows": len(q), "histories": len(cu_seqlens) - 1, "groups": groups}


def _form(q, k, selected, cu_seqlens, window, sinks, causal) -> dict[str, int]:
    form = {"top_n": selected.shape[2], "window": window, "sinks": sinks, "causal": causal}
    return _sizes(q, cu_seqlens, k.shape[1]) | form
