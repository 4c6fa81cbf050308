"""The kernels compiled for an H100 or H200 without one: they take 16 bytes at a time, do not spill.

A process of its own compiles, as the other tests have the kernels interpreted.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROWS_16 = ("x", "branch", "out", "grad", "grad_x", "grad_branch", "hidden", "joint", "q", "k", "v")
ROWS_16 += ("gates", "grad_gates", "windows", "grad_k", "weight", "excess")
TYPES = {
    **dict.fromkeys(ROWS_16, "*bf16"),
    **dict.fromkeys(("bias", "shift", "sums", "angles", "lse", "target_logits"), "*fp32"),
    **dict.fromkeys(("importance", "losses", "slopes", "counted"), "*fp32"),
    **dict.fromkeys(("means", "grad_means", "result", "partial", "gradient"), "*fp32"),
    **dict.fromkeys(("gradients", "shares"), "*fp32"),
    **dict.fromkeys(("block_keys", "grad_q", "grad_keys"), "*bf16"),
    **dict.fromkeys(("samples", "firsts", "first_blocks", "lows", "counts", "ends"), "*i64"),
    **{"drawn": "*fp32", "cu_seqlens": "*i32", "table": "*i32", "bounds": "*i64"},
    **{"frequencies": "*fp32", "places": "*fp32"},
    **dict.fromkeys(("seed", "starts", "numbers", "rows", "targets", "owns"), "*i64"),
    **dict.fromkeys(("eps", "scale"), "fp32"),
}
# Kernels with names of their own.
RANKING = "blossomrec.models.fused.kernels.catalogue_scores"
RANKING_TYPES = {
    **dict.fromkeys(("queries", "units", "offsets", "upper", "scores", "vectors"), "*fp32"),
    **dict.fromkeys(("query_sizes", "query_errors", "group_sizes", "group_errors"), "*fp32"),
    **dict.fromkeys(("rounding", "lowest", "rest_unit"), "fp32"),
    **dict.fromkeys(("rounded", "rests", "table", "table_rests"), "*fp16"),
    **{"lse": "*fp32", "chosen": "*i64"},
}
# Kernels of the rows of a table.
LAZY = "blossomrec.models.fused.kernels.lazy_adamw"
LAZY_ROWS = ("rows", "own", "seen", "updates")
LAZY_NUMBERS = ("weight", "means", "squares", "average", "steps", "gradient")
LAZY_TYPES = {
    **dict.fromkeys(LAZY_ROWS, "*i64"),
    **dict.fromkeys(LAZY_NUMBERS, "*fp32"),
    **dict.fromkeys(("moved", "left", "behind", "now"), "*fp64"),
    **{"rate": "*fp32", "out": "*fp32"},
}
# Kernels of rows that are summed by their numbers.
SUMS = "blossomrec.models.fused.kernels.embedding"
SUMS_TYPES = {
    **{"keys": "*i32", "order": "*i64"},
    **dict.fromkeys(("gradient", "sums", "carried"), "*fp32"),
}
# The kernel of the targets beside a sample.
BESIDE = "blossomrec.models.fused.kernels.sampled_rows"
BESIDE_TYPES = {
    **dict.fromkeys(("vectors", "shares", "others", "means", "lse", "losses"), "*fp32"),
    **{"hidden": "*bf16", "targets": "*i32", "of_targets": "*fp32"},
}
# Kernels of distinct rows.
DISTINCT = "blossomrec.models.fused.kernels.distinct"
DISTINCT_TYPES = {
    **dict.fromkeys(("rising", "new", "rank"), "*i32"),
    **dict.fromkeys(("order", "rows", "own", "places"), "*i64"),
}
# The kernel that draws.
DRAWS = "blossomrec.models.fused.kernels.uniform"
DRAWS_TYPES = {"seed": "*i64", "stream": "*i64", "out": "*fp64"}
# Kernels in which ``rows`` is a number, and sizes that are multiples of 16 where it matters.
SCAN = "blossomrec.models.peers.kernels.scan"
SCAN_COUNTS = ("total", "channels", "size", "chunks", "numbers")
COUNTS = ("events", "count", "blocks", "items", "tiles")
MULTIPLES = ("size", "start", "width", "q_event", "q_head", "k_event", "k_head")


def compile_kernel(kernel, constants, folder, warps=4, stages=3):
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    constants = {name: constants[name] for name in kernel.arg_names if name in constants}
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        counts = kernel.fn.__module__.split(".")[-1] not in ("block_mass", "importance", "sampling")
        kind = "i32" if name == "rows" and counts else None
        kind = kind or TYPES.get(name, "i32")
        if kernel.fn.__module__ == RANKING:
            kind = RANKING_TYPES.get(name, "i32")
        if kernel.fn.__name__ in ("rows_kernel", "items_kernel") and name in ("targets", "numbers"):
            kind = "*i32"
        if kernel.fn.__module__ == LAZY:
            kind = LAZY_TYPES.get(name, "i32")
        if kernel.fn.__module__ == BESIDE:
            kind = BESIDE_TYPES.get(name, "i32")
        if kernel.fn.__module__ == DISTINCT:
            kind = DISTINCT_TYPES.get(name, "i32")
        if kernel.fn.__module__ == DRAWS:
            kind = DRAWS_TYPES.get(name, "i32")
        if kernel.fn.__module__ == SUMS:
            kind = SUMS_TYPES.get(name, "i32")
        if kernel.fn.__module__ == SCAN:
            # Nothing but float32, and numbers of something.
            kind = "i32" if name in SCAN_COUNTS else "*fp32"
        signature[name] = "constexpr" if name in constants else kind
        if signature[name].startswith("*") or name in MULTIPLES:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": warps, "num_stages": stages}
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    # One that is compiled in two forms stands there twice.
    forms = ("RELU", "SAMPLE")
    name = "_".join([kernel.fn.__name__, *(f.lower() for f in forms if constants.get(f))])
    assembly = Path(folder, f"{name}.ptx")
    assembly.write_text(compiled.asm["ptx"])
    command = [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", assembly, "-o", f"{assembly}.cubin"]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return name, {
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),
        "spilled_bytes": int(re.search(r"(\d+) bytes spill stores", report)[1]),
        "shared_bytes": compiled.metadata.shared,
        "wide_accesses": len(re.findall(r"(?:ld|st)\.global\S*\.v4\.b32", compiled.asm["ptx"])),
    }


def compile_all(folder):
    from blossomrec.attention.backends.gpu import block_mass, geometry, importance, projection
    from blossomrec.attention.backends.gpu.kernels import (
        activation,
        sampling,
        windows,
    )
    from blossomrec.losses import sampling as sampling_loss
    from blossomrec.models.fused import (
        catalogue_loss,
        catalogue_scores,
        embedding,
        lazy_adamw,
        norm,
    )
    from blossomrec.models.fused.kernels.distinct import distinct_kernel, new_numbers_kernel
    from blossomrec.models.fused.kernels.embedding import carried_sums_kernel, row_sums_kernel
    from blossomrec.models.fused.kernels.uniform import uniform_kernel
    from blossomrec.models.peers import scan_kernels
    from blossomrec.models.peers.kernels import scan
    from blossomrec.training.sparse import distinct

    chunk = {"ROWS": scan_kernels.ROWS, "COLUMNS": scan_kernels.COLUMNS}
    carry = {"BACK": True, "BLOCK": scan_kernels.CARRIED}
    norms = {
        "HAS_BRANCH": True,
        "HAS_BIAS": True,
        "DROPPED": 13_107,
        "KEPT": 1.25,
        "ROWS": 8,
        "BLOCK": 128,
    }
    heads = projection._form(projection.Sizes(8, 2, 16, 4), None) | {"GATES": 2}
    window = {"S": 16, "WINDOW": 32, "G": 2, "D": 16, "PLACES": 32, "COLUMNS": 32}
    sums = {"G": 2, "R": 4, "D": 16, "S": 16, "D_BLOCK": 16}
    sums |= {"QUERIES": block_mass.QUERIES, "BLOCKS": block_mass.BLOCKS}
    softmax = {"D": 128, "D_BLOCK": 128, "MEAN": True, "SHARED": True, "SAMPLE": False}
    height, seen, warps = catalogue_loss.ROWS_FORMS[128]
    of_rows = softmax | {"ROWS": height, "ITEMS": seen}
    width, seen, items_warps = catalogue_loss.ITEMS_FORMS[128]
    of_items = softmax | {"ITEMS": width, "ROWS": seen}
    sample = {"SAMPLE": True}
    groups = {"D": 128, "D_BLOCK": 128}
    groups |= {"GROUP": catalogue_scores.GROUP, "LANES": catalogue_scores.LANES}
    height, seen, *ranking = catalogue_scores.FORMS[128]
    of_groups = groups | {"ROWS": height, "ITEMS": seen}
    height, seen, *summing = catalogue_scores.LSE_FORMS[128]
    of_sums = groups | {"ROWS": height, "ITEMS": seen}
    betas = {"FIRST": 0.9, "SECOND": 0.999, "LOG_FIRST": -0.152, "LOG_SECOND": -0.00144}
    rows = betas | {"D": 128, "D_BLOCK": 128, "ROWS": 8, "EPS": 1e-8, "AVERAGE": True}
    ages = betas | {"BLOCK": 1_024, "FACTOR": 2.0, "DECAY": 0.998, "AVERAGE": True}
    choice = {"G": 2, "R": 4, "CAUSAL": True, "PLACES": 4_096}
    distilling = {"G": 2, "R": 4, "D": 16, "D_BLOCK": 16, "H_BLOCK": 8, "S": 16, "STEPS": 14}
    distilling |= {
        "BLOCKS": importance.BLOCKS,
        "SAMPLES": importance.SAMPLES,
        "PLACES": 64,
        "RUNS": 64,
    }
    where = {"TILE": 16, "S": 16, "HISTORIES": geometry.HISTORIES, "ANSWERS": geometry.ANSWERS}
    where |= {"STEPS": 10, "NONE": geometry.NO_BLOCK, "PAIRS": 4, "PLACES": 4}
    of_draws = {"STEP": sampling_loss._STEP, "FIRST": sampling_loss._FIRST}
    of_draws |= {"SECOND": sampling_loss._SECOND, "BLOCK": sampling_loss.BLOCK}
    of_keys = {"D": 128, "ROWS": embedding.ROWS, "BLOCK": embedding.BLOCK}
    kernels = [
        (geometry.bounds_kernel, where),
        (geometry.tiles_kernel, where),
        (geometry.blocks_kernel, where),
        (geometry.angles_kernel, where),
        (sampling.choices_kernel, where | {"TOP_N": 4, "CAUSAL": True}),
        (sampling.draw_kernel, distilling),
        (importance.importance_kernel, distilling),
        (importance.mean_gradients_kernel, distilling),
        (importance.scatter_kernel, distilling | {"PLACES": 512}),
        (importance.key_gradients_kernel, distilling),
        (block_mass.mean_kernel, {"PLACES": 1_024}),
        (norm.add_norm_kernel, norms),
        (norm.add_norm_backward_kernel, norms),
        (lazy_adamw.catch_up_kernel, rows),
        (lazy_adamw.step_kernel, rows),
        (lazy_adamw.age_kernel, ages),
        (new_numbers_kernel, {"BLOCK": distinct.BLOCK}),
        (distinct_kernel, {"BLOCK": distinct.BLOCK}),
        (uniform_kernel, of_draws),
        (row_sums_kernel, of_keys),
        (carried_sums_kernel, of_keys | {"PARTS": embedding.PARTS}),
        (activation.activation_kernel, {"RELU": False, "ROWS": 4, "BLOCK": 256}),
        (activation.activation_backward_kernel, {"RELU": False, "ROWS": 4, "BLOCK": 256}),
        (projection.split_kernel, heads),
        (projection.join_kernel, heads),
        (windows.windows_kernel, window),
        (activation.activation_kernel, {"RELU": True, "ROWS": 2, "BLOCK": 512}),
        (activation.activation_backward_kernel, {"RELU": True, "ROWS": 2, "BLOCK": 512}),
        (windows.windows_backward_kernel, window | {"PLACES": 16}),
        (block_mass.block_sums_kernel, sums),
        (scan.ends_kernel, chunk),
        (scan.slopes_kernel, chunk),
        (scan.carry_kernel, carry),
        (scan.scan_kernel, chunk),
        (scan.scan_backward_kernel, chunk),
    ]
    wide = [
        (catalogue_loss.rows_kernel, of_rows, warps),
        (catalogue_loss.rows_kernel, of_rows | sample, warps),
        (catalogue_loss.loss_kernel, softmax | {"ROWS": catalogue_loss.LOSS_ROWS}, 4),
        (catalogue_loss.target_kernel, softmax | {"ROWS": catalogue_loss.LOSS_ROWS}, 4),
        (catalogue_loss.items_kernel, of_items, items_warps),
        (catalogue_loss.items_kernel, of_items | sample, items_warps),
        (block_mass.divergence_kernel, choice, 16),
        (catalogue_scores.group_bounds_kernel, of_groups, *ranking),
        (catalogue_scores.lse_kernel, of_sums, *summing),
        (catalogue_scores.group_scores_kernel, groups, catalogue_scores.SCORE_WARPS),
    ]
    found = [compile_kernel(kernel, constants, folder) for kernel, constants in kernels]
    found += [compile_kernel(kernel, constants, folder, *form) for kernel, constants, *form in wide]
    return dict(found)


def test_no_register_spills(tmp_path):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 45
    assert {name: use for name, use in found.items() if use["spilled_bytes"]} == {}
    # What a program may take at most.
    assert {name: use for name, use in found.items() if use["shared_bytes"] > 232_448} == {}
    # Two programs share a processor, so that one multiplies while the other looks for maxima.
    assert found["group_bounds_kernel"]["registers"] <= 128
    assert 2 * (found["group_bounds_kernel"]["shared_bytes"] + 1_024) <= 233_472
    wide = ("add_norm_kernel", "add_norm_backward_kernel", "items_kernel")
    wide += ("catch_up_kernel", "step_kernel", "row_sums_kernel", "target_kernel")
    for name in wide:
        assert found[name]["wide_accesses"] > 0, name


if __name__ == "__main__":
    print(json.dumps(compile_all(sys.argv[1])))
