"""The CUDA kernels compiled for an H100 or H200 without one: registers must not spill to memory."""

import re
import shutil
import subprocess

import pytest
import torch

from blossomrec.attention.backends.cuda import compiler, launch

NVCC = shutil.which("nvcc")
# Bytes of a thread: some addresses kept aside. A tile that does not fit takes hundreds.
SPILL_LIMIT = 64
LAYOUTS = [(8, 2, 16), (2, 2, 32), (4, 2, 64)]


@pytest.fixture(autouse=True)
def described(monkeypatch):
    """Instead of kernels, what they are compiled from."""
    monkeypatch.setattr(compiler, "kernel", lambda *given: given)
    launch._attention.cache_clear()
    launch._selection.cache_clear()
    yield
    launch._attention.cache_clear()
    launch._selection.cache_clear()


@pytest.mark.skipif(NVCC is None, reason="needs nvcc, CUDA's compiler")
@pytest.mark.parametrize("is_union", [0, 1], ids=["gated", "union"])
@pytest.mark.parametrize("heads, groups, size", LAYOUTS, ids=str)
def test_nothing_spills(heads, groups, size, is_union, tmp_path):
    q = torch.empty(131_072, heads, size, dtype=torch.bfloat16, device="meta")
    # Block keys in 16 bits, and in float32.
    selection = [
        each for parts in (1, 3) for each in launch.selection_kernels(q, groups, 4, True, parts)
    ]
    attention = launch.attention_kernels(q, groups, [16, 4, 8, 0, 1, is_union], True)
    kernels = attention if is_union else [*selection, *attention]
    # What is compiled alike is compiled at once: CUDA's own headers take longer than a kernel.
    alike: dict[tuple, dict[str, set[str]]] = {}
    for program, name, constants in kernels:
        programs = alike.setdefault(tuple(constants.items()), {})
        programs.setdefault(program, set()).add(name)
    for number, (constants, programs) in enumerate(alike.items()):
        source = tmp_path / f"{number}.cu"
        texts = (f"namespace {each} {{\n{compiler.source(each)}\n}}\n" for each in programs)
        source.write_text("".join(texts))
        defines = [f"-D{name}={value}" for name, value in constants]
        flags = ["-std=c++17", "-arch=sm_90", "-cubin", "-Xptxas", "-v", *defines]
        output = [NVCC, *flags, "-o", source.with_suffix(".cubin"), source]
        done = subprocess.run(output, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = re.findall(r"properties for (\w+)\n.*?(\d+) bytes spill stores", done.stderr)
        assert {name for name, _ in found} == set().union(*programs.values())
        for name, spilled in found:
            assert int(spilled) <= SPILL_LIMIT, f"{name} spills {spilled} bytes"
