"""The fast implementations never build a tensor that grows with the square of a length."""

import itertools
from pathlib import Path

import pytest
import torch
from inputs import attend, random_inputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.speed.instruments import memory
from implementations import CPU_MISSING


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor any operation gave."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // 4)
        return result


def largest(length, causal, fusion):
    inputs = random_inputs([length], heads=2, groups=1, fusion=fusion)
    leaves = inputs.differentiable()
    with LargestTensor() as seen:
        out, _ = attend(*inputs.all(), impl="torch", causal=causal, fusion=fusion)
        torch.autograd.grad(out.sum(), leaves)
    return seen.elements


@pytest.mark.parametrize("fusion", ["gated", "union"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_memory_is_linear(causal, fusion):
    small, large = largest(4_096, causal, fusion), largest(16_384, causal, fusion)
    assert large <= 4.1 * small
    assert large < 16_384 * 16_384 / 16 / 8


FORMS = list(itertools.product((True, False), ("gated", "union")))


def peaks_of_the_operator():
    """MiB that forward and backward take at two lengths, the operator's own tables included."""
    memory.exact_peaks()
    return {form: [peak(length, *form) for length in (4_096, 16_384)] for form in FORMS}


def peak(length, causal, fusion):
    inputs = random_inputs([length], heads=8, size=16, fusion=fusion)
    leaves = inputs.differentiable()

    def run():
        out, _ = attend(*inputs.all(), impl="cpu", causal=causal, fusion=fusion)
        torch.autograd.grad(out.sum(), leaves)

    run()
    return memory.peak_mib(run, "cpu")


@pytest.fixture(scope="module")
def peaks():
    return memory.alone(peaks_of_the_operator)


@pytest.mark.skipif(bool(CPU_MISSING), reason=CPU_MISSING)
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the system does not forget an earlier peak"
)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_memory_of_the_operator_is_linear(form, peaks):
    small, large = peaks[form]
    # The output alone; with nothing measured all of the rest would hold.
    assert small > 4_096 * 8 * 16 * 4 / 2**20
    assert large <= 4.5 * small
    # A table of the scores of all blocks for one key/value head would take this alone.
    assert large < 16_384 * 16_384 / 16 * 4 / 2**20
