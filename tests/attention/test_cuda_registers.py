"""The CUDA kernels compiled for an H100 or H200 without one: registers must not spill to memory."""

import re
import shutil
import subprocess
from typing import Any

import pytest
import torch

from blossomrec.attention.backends.cuda import compiler, launch

NVCC = shutil.which("nvcc")
# Bytes of a thread: some addresses kept aside. A tile that does not fit takes hundreds.
SPILL_LIMIT = 64
# The published layout, then those of which a warp holds the most events at a time: one a group.
LAYOUTS = [(8, 2, 16), (8, 8, 16), (2, 2, 32), (2, 2, 64)]
# The last number is the base: of the published layout those of the paper, of others the lowest.
BASES = [(8, 2, 16, 1.5), (8, 2, 16, 3.0), (8, 2, 16, 4.0), (2, 2, 64, 2.001), (4, 2, 64, 1.5)]
# The last number is top_n.
CHOOSING = [(8, 2, 16, 4), (2, 2, 32, 4), (4, 2, 64, 4), (8, 1, 64, 32)]
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc, CUDA's compiler")


@pytest.fixture(autouse=True)
def described(monkeypatch):
    """Instead of kernels, what they are compiled from."""
    monkeypatch.setattr(compiler, "kernel", lambda *given: given[:3])
    launch._attention.cache_clear()
    launch._selection.cache_clear()
    yield
    launch._attention.cache_clear()
    launch._selection.cache_clear()


@needs_nvcc
@pytest.mark.parametrize("is_union", [0, 1], ids=["gated", "union"])
@pytest.mark.parametrize("causal", [1, 0], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("heads, groups, size", LAYOUTS, ids=str)
def test_attention_does_not_spill(heads, groups, size, causal, is_union, tmp_path):
    numbers = [16, 4, 8, 0, causal, is_union, 2, 1]
    check_spills(launch.attention_kernels(rows(heads, size), groups, numbers), tmp_path)


@needs_nvcc
@pytest.mark.parametrize("is_union", [0, 1], ids=["gated", "union"])
@pytest.mark.parametrize("causal", [1, 0], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("heads, groups, size, base", BASES, ids=str)
def test_other_bases_do_not_spill(heads, groups, size, base, causal, is_union, tmp_path):
    numbers = [16, 4, 8, 0, causal, is_union, *base.as_integer_ratio()]
    check_spills(launch.attention_kernels(rows(heads, size), groups, numbers), tmp_path)


@needs_nvcc
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("heads, groups, size", [(4, 2, 64), (8, 2, 16)], ids=str)
def test_selection_by_warpgroups_does_not_spill(heads, groups, size, causal, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "has_warpgroups", lambda _: True)
    monkeypatch.setattr(launch, "HOPPER_HEADS", (size,))
    kernels: Any = launch.selection_kernels(rows(heads, size), groups, 4, causal, 1)
    assert kernels.select_blocks[0] == "hopper_selection"
    check_spills(kernels, tmp_path)


@needs_nvcc
@pytest.mark.parametrize("key_parts", [1, 3], ids=["keys of 16 bits", "keys of float32"])
@pytest.mark.parametrize("heads, groups, size, top_n", CHOOSING, ids=str)
def test_selection_does_not_spill(heads, groups, size, top_n, key_parts, tmp_path):
    kernels = launch.selection_kernels(rows(heads, size), groups, top_n, True, key_parts)
    check_spills(kernels, tmp_path)


def rows(heads, size):
    return torch.empty(131_072, heads, size, dtype=torch.bfloat16, device="meta")


def check_spills(kernels, folder):
    # Kernels whose constants agree are compiled at once: CUDA's headers take longer than a kernel.
    alike: list[tuple[dict[str, int | str], dict[str, set[str]]]] = []
    for program, name, constants in kernels:
        agree = (
            each
            for each in alike
            if all(each[0].get(key, value) == value for key, value in constants.items())
        )
        if (group := next(agree, None)) is None:
            alike.append(group := ({}, {}))
        group[0].update(constants)
        group[1].setdefault(program, set()).add(name)
    for number, (constants, programs) in enumerate(alike):
        source = folder / f"{number}.cu"
        # Not as flags: nvcc takes what follows a comma for another one.
        defines = (f"#define {name} {value}\n" for name, value in constants.items())
        texts = (f"namespace {each} {{\n{compiler.source(each)}\n}}\n" for each in programs)
        source.write_text("".join((*defines, *texts)))
        architecture = f"-arch={compiler.architecture_of((9, 0))}"
        flags = ["-std=c++17", architecture, "-cubin", "-Xptxas", "-v"]
        output = [NVCC, *flags, "-o", source.with_suffix(".cubin"), source]
        done = subprocess.run(output, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = re.findall(r"properties for (\w+)\n.*?(\d+) bytes spill stores", done.stderr)
        assert {name for name, _ in found} == set().union(*programs.values())
        for name, spilled in found:
            assert int(spilled) <= SPILL_LIMIT, f"{name} spills {spilled} bytes"
