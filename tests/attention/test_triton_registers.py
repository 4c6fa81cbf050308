"""The kernels compiled for an H100 or H200 without one: registers must not spill to memory.

A process of its own compiles, as the other tests have the kernels interpreted.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Of the type under test.
ROWS = "*rows"
ARGUMENTS = {
    "*fp32": ("lse", "shifts", "sums", "chunk_sums", "sink_sums", "best"),
    "*i32": (
        *("selected", "table", "lists", "starts", "chunk_starts", "owners"),
        *("rows", "candidates", "taken"),
    ),
    "*i64": ("order",),
    "fp32": ("scale", "share"),
    ROWS: ("q", "k", "v", "gates", "out", "grad", "grad_q", "grad_k", "grad_v", "grad_gates"),
}
TYPES = {name: kind for kind, names in ARGUMENTS.items() for name in names}
TYPES |= dict.fromkeys(("block_keys", "pages"), ROWS)
# Bytes of a thread: an address or two kept aside. A tile that does not fit takes thousands.
SPILL_LIMIT = 32
# (heads, key/value heads, head size, type). Heads of 64 float32 do spill.
LAYOUTS = [(8, 2, 16, "bf16"), (4, 2, 64, "bf16"), (8, 2, 16, "fp32"), (8, 8, 16, "fp32")]
FORMS = [(*layout, "gated") for layout in LAYOUTS] + [(*layout, "union") for layout in LAYOUTS[:3]]


def arguments(kernel, constants, dtype):
    """Signature, and which arguments are known to be multiples of 16, as when launched."""
    signature, attributes = {}, {}
    types = {name: dtype if kind == ROWS else kind for name, kind in TYPES.items()}
    for place, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else types.get(name, "i32")
        is_stride = name.endswith(("_event", "_head", "_stride"))
        if signature[name].startswith("*") or is_stride:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return signature, attributes


def compile_kernel(kernel, constants, shape, dtype, folder):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    signature, attributes = arguments(kernel, constants, f"*{dtype}")
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    options = {name: value for name, value in shape.options().items() if value is not None}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    name = kernel.fn.__name__
    assembly = Path(folder, f"{name}.ptx")
    assembly.write_text(compiled.asm["ptx"])
    command = [
        get_ptxas(90).path,
        "-v",
        "--gpu-name=sm_90a",
        assembly,
        "-o",
        assembly.with_suffix(".cubin"),
    ]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores", report)
    return name, {"registers": int(registers[1]), "spilled_bytes": int(spills[1])}


def compile_all(heads, groups, size, dtype, fusion, folder):
    import torch
    import triton

    from blossomrec.attention.backends.gpu import share, step
    from blossomrec.attention.backends.gpu.kernel_pattern import Pattern
    from blossomrec.attention.backends.gpu.kernels import step as step_kernels
    from blossomrec.attention.backends.gpu.kernels.share import share_kernel
    from blossomrec.attention.backends.gpu.launch import Shape
    from blossomrec.attention.backends.triton.kernels import (
        backward_keys,
        backward_queries,
        forward,
        partial_sums,
        selection,
    )
    from blossomrec.attention.backends.triton.launch import PRECISION, launch_for

    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    launch = launch_for(size, heads // groups, kind)
    plain, sinks = (Pattern.of(16, 8, sinks, True, 131_072) for sinks in (0, 4))
    constants = {
        **{"G": groups, "R": heads // groups, "D": size, "N": 4, "PRECISION": PRECISION},
        **plain.query_constants(launch.keys),
        **plain.key_constants(),
        "CHUNK": launch.chunk,
        "UNION": fusion == "union",
    }
    with_sinks = constants | {"SINKS": 4, "SINK_BLOCKS": sinks.sink_blocks}
    scores = {
        "PLACES": triton.next_power_of_2(4),
        **dict(zip(("QUERIES", "BLOCKS"), launch.tile, strict=True)),
    }
    # 256 users, one of whom has 65,536 events.
    paged = {
        **constants,
        **step.pattern_constants(8, 4, 65_536),
        **{"MEAN": True, "SINKS": 4, "SPAN": step.SPAN},
        **{"SPANS": 16, "MERGED": 64, "PLACES": 8},
    }
    kernels = [
        (forward.forward_kernel, constants, launch.forward),
        (backward_queries.backward_queries_kernel, constants, launch.backward_queries),
        (backward_keys.backward_keys_kernel, constants, launch.backward_keys),
        (partial_sums.list_sums_kernel, constants, launch.backward_keys),
        (partial_sums.sink_sums_kernel, with_sinks, launch.backward_keys),
        (selection.selection_kernel, constants | scores, launch.selection),
        (share_kernel, share.constants(groups, heads // groups, size, 16, 4, True), share.SHAPE),
        (step_kernels.append_kernel, paged, Shape(1, 1)),
        (step_kernels.span_kernel, paged, step.span_shape(size)),
        (step_kernels.step_kernel, paged, step.step_shape(size, 16)),
    ]
    return dict(compile_kernel(*kernel, dtype, folder) for kernel in kernels)


@pytest.fixture
def folder(tmp_path_factory):
    """One for all workers, so that kernels which two forms share are compiled once."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_no_register_spills(form, folder, tmp_path):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "compiled")}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, __file__, json.dumps(form), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 10
    assert {name: use for name, use in found.items() if use["spilled_bytes"] > SPILL_LIMIT} == {}


if __name__ == "__main__":
    print(json.dumps(compile_all(*json.loads(sys.argv[1]), sys.argv[2])))
