"""What the CUDA kernels take, and the constants that they are compiled with."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from blossomrec.attention.backends.cuda import compiler
from blossomrec.attention.backends.gpu.kernel_pattern import LONGEST, Pattern, powers_of
from blossomrec.attention.spec import Target

BLOCK_SIZE = 16
HEAD_SIZES = (16, 32, 64)
HEADS_PER_GROUP = (1, 2, 4, 8)
DTYPES = (torch.bfloat16, torch.float16)
# A warp has a lane for each choice of the events of a unit, of which there are 8 / R.
MAX_CHOICES = 32
# A warp keeps the scores of its own block and of this many neighbours in registers.
MAX_NEAR = 2
# One warp takes this many entries of an inverse list, by head size.
CHUNK = {16: 128, 32: 128, 64: 256}
# Choices are counted segment by segment, of a multiple of 32 tiles: counts.cu has a lane for each.
# There are fewer segments where each has so many lists that counts would take more than a GiB; the
# kernels index them with 32 bits.
SEGMENT, MAX_SEGMENTS, MAX_COUNTS = 32, 512, 1 << 28
# How many lists one warp counts at a time: four bytes of shared memory each.
COUNTERS = 4096


class Wide(NamedTuple):
    """Kernels of wide heads, which fetch a chosen block once for many events.

    Forward, a warp sweeps over the blocks that any of its events chose, see sweep.cuh. Backward,
    gradients of queries are first computed without chosen blocks, see near_queries.cu. The warp of
    a block then goes through the queries that chose it, which come through a ring, see ring.cuh. It
    computes gradients of keys and of queries; those of queries are written to memory, N for each
    query, and summed up afterwards.

    Attributes:
        units: how many a warp of the forward kernel holds at a time.
        forward: how many of its warps a multiprocessor holds.
        together: how many of its warps make a block of threads.
        slots: how many steps of far keys the kernel of the queries has room for.
        queries: how many of its warps a multiprocessor holds.
        stages: how many the ring has, sixteen rows each.
        keys: how many warps of the kernel of the keys a multiprocessor holds.
    """

    units: int
    forward: int
    together: int
    slots: int
    queries: int
    stages: int
    keys: int


# The forms of wide heads, by size. With heads of 16 each event fetches its own blocks: writing
# gradients of queries to memory costs more than it saves.
WIDE = {32: Wide(2, 20, 4, 3, 12, 3, 16), 64: Wide(2, 16, 8, 3, 9, 3, 12)}
# How many warps a multiprocessor holds of the kernels of other heads, by their size: as many as
# registers leave room for.
RESIDENT = {16: {"FORWARD": 20, "QUERIES": 24, "KEYS": 18, "LISTS": 24}}
# The same with one query head a group: units of eight events take more registers. Forward, a causal
# union takes the fewest of them.
SINGLE = {"FORWARD": 16, "QUERIES": 16, "KEYS": 24, "LISTS": 20}
SINGLE_UNION = {"FORWARD": 20}
# How many of the kernel of the queries it holds at most where both of two paths look both ways,
# which takes more registers: with heads of 16, with one of these a group, and with wide heads.
BOTH_WAYS, BOTH_WAYS_SINGLE, BOTH_WAYS_WIDE = 20, 12, 8
# How many it holds where distances are no powers of two: there are more far keys and comparisons.
OTHER_BASE = {"FORWARD": 16, "QUERIES": 12, "KEYS": 12, "LISTS": 20}
# The lowest base of those powers, and with one query head a group, where a step takes few far keys.
MIN_BASE, MIN_BASE_SINGLE = 1.5, 2.0
# How many warps make a block of threads: the fastest of 1, 2, 4 and 8 on an H200.
TOGETHER = {16: 1, 32: 2, 64: 1}
# The same two numbers of the selection with wide heads, and the share of a multiprocessor's memory,
# in per cent, that it has as shared memory.
SELECTION = {"WARPS_SELECTION": 20, "TOGETHER": 4}
SELECTION_CARVEOUT = 80
# A multiprocessor holds fewer of its warps where keys come in three parts, and where top_n is above
# 8: both take more registers.
WARPS_OF_PARTS, WARPS_OF_MANY = 12, 8
# The same two numbers on Hopper, by head size, where warps share block keys in shared memory; and
# how many stages there are for those, and of how many.
HOPPER_SELECTION = {
    16: {"WARPS_SELECTION": 16, "TOGETHER": 8, "STAGES": 3, "STAGE_KEYS": 128},
    64: {"WARPS_SELECTION": 16, "TOGETHER": 8, "STAGES": 3, "STAGE_KEYS": 64},
}
# Head sizes with which it was measured to be faster. It takes 16, too, which nobody has timed.
HOPPER_HEADS = (64,)
# Registers have room for this many choices of each lane, and numbers of an event's queries.
HOPPER_CHOICES, HOPPER_QUERIES = 4, 128
# A table has a multiple of this many tiles. Every number of warps in a block of threads divides it,
# so that all warps of a block have a tile.
TILES = 8
# How many warps make a block of threads in a kernel that only waits for memory.
STREAMING = 8


@cache
def available() -> bool:
    """Whether kernels can be compiled and loaded: it takes an Ampere GPU or newer, and NVRTC."""
    if torch.version.cuda is None or torch.cuda.get_device_capability()[0] < 8:
        return False
    try:
        compiler.libraries()
    except compiler.CompilationError:
        return False
    return True


@cache
def has_warpgroups(device: torch.device) -> bool:
    """Whether tensor cores multiply for four warps at once, as Hopper's do (sm_90a)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


def unsupported(target: Target) -> str:
    """What the kernels do not take, as a sentence; empty where all is well."""
    spec, per_group = target.spec, target.heads.per_group
    if target.device == "cuda" and not available():
        return "the GPU is older than Ampere, or CUDA's compiler (NVRTC) is not found"
    for name, value, choices in (
        ("the head size", target.heads.size, HEAD_SIZES),
        ("the number of query heads a key/value head", per_group, HEADS_PER_GROUP),
        ("block_size", spec.block_size, (BLOCK_SIZE,)),
        ("sinks", spec.sinks, (0,)),
        ("the type", target.dtype, DTYPES),
    ):
        if value not in choices:
            return f"{name} is {value}, the kernels take {', '.join(map(str, choices))}"
    for name, value, high in (
        ("top_n", spec.top_n, MAX_CHOICES * per_group // 8),
        ("window", spec.window, MAX_NEAR * BLOCK_SIZE + 1),
    ):
        if value > high:
            return f"{name} is {value}, the kernels take at most {high} here"
    low = MIN_BASE if per_group > 1 else MIN_BASE_SINGLE
    if spec.power_base < low:
        return f"power_base is {spec.power_base}, the kernels take at least {low} here"
    return ""


class Selection(NamedTuple):
    """Kernels of the selection."""

    split_keys: Callable[..., None]
    select_blocks: Callable[..., None]


class Attention(NamedTuple):
    """Kernels of both paths; the last one is for wide heads."""

    pack_blocks: Callable[..., None]
    forward: Callable[..., None]
    backward_queries: Callable[..., None]
    count_choices: Callable[..., None]
    find_lists: Callable[..., None]
    order_choices: Callable[..., None]
    list_sums: Callable[..., None]
    backward_keys: Callable[..., None]
    add_choices: Callable[..., None]


def selection_kernels(
    q: Tensor, groups: int, top_n: int, causal: bool, key_parts: int
) -> Selection:
    """For block keys that are sums of ``key_parts`` bfloat16."""
    return _selection(_sizes(q, groups, top_n), causal, key_parts, has_warpgroups(q.device))


def attention_kernels(q: Tensor, groups: int, numbers: list[int]) -> Attention:
    """For histories of at most as many events as ``q`` has; ``numbers`` as operators take them."""
    _, top_n, window, _, causal, is_union, *ratio = numbers
    base = ratio[0] / ratio[1]
    pattern = Pattern.of(BLOCK_SIZE, window, 0, bool(causal), len(q), base)
    sizes = _sizes(q, groups, top_n)
    powers = 2 * sizes[0]
    # A kernel has one step at least, though it may have nothing to do in it.
    steps = max(1, -(-pattern.far // powers))
    short_path = (window, pattern.near, pattern.first_far, steps)
    # All that the steps have room for, so that kernels are the same for many lengths.
    distances = () if base == 2 else powers_of(base)[: pattern.first_far + steps * powers]
    return _attention(sizes, short_path, distances, bool(causal), bool(is_union))


def _sizes(q: Tensor, groups: int, top_n: int) -> tuple[int, int, int, int, bool]:
    return q.shape[1] // groups, groups, q.shape[2], top_n, q.dtype == torch.bfloat16


def _constants(sizes: tuple[int, int, int, int, bool], causal: bool) -> dict[str, int]:
    per_group, groups, size, top_n, is_bfloat16 = sizes
    return {
        "R": per_group,
        "G": groups,
        "D": size,
        "N": top_n,
        "BF16": int(is_bfloat16),
        "QUERY_BF16": int(is_bfloat16),
        "CAUSAL": int(causal),
        # A row of 16 numbers has nothing to read in pairs.
        "PAIRED": int(size in WIDE and size > 16),
        "TOGETHER": 1,
    }


@lru_cache(maxsize=64)
def _selection(
    sizes: tuple[int, int, int, int, bool], causal: bool, key_parts: int, warpgroups: bool
) -> Selection:
    per_group, _, size, top_n, is_bfloat16 = sizes
    # Products are of bfloat16 whatever the queries are: three of them make a float32.
    common = {**_constants(sizes, causal), "BF16": 1}
    by_head = int(is_bfloat16 and per_group <= 2)
    constants = {**common, "PARTS": key_parts, "BY_HEAD": by_head}
    program, carveout = "selection", 100
    fits = top_n <= HOPPER_CHOICES and (per_group if by_head else 3) * size <= HOPPER_QUERIES
    if warpgroups and size in HOPPER_HEADS and fits and key_parts == 1:
        program = "hopper_selection"
        constants |= HOPPER_SELECTION[size]
        # Stages of 16 bits a number, and for each lane 20 scores of either row, of eight bytes.
        stages = constants["STAGES"] * constants["STAGE_KEYS"] * size * 2
        constants["SHARED"] = stages + constants["TOGETHER"] * compiler.WARP * 2 * 20 * 8
    elif size in WIDE:
        program, carveout = "wide_selection", SELECTION_CARVEOUT
        constants |= SELECTION
        if top_n > 8:
            constants["WARPS_SELECTION"] = WARPS_OF_MANY
        elif key_parts > 1:
            constants["WARPS_SELECTION"] = WARPS_OF_PARTS
        # Shared memory has no room for more choices of several warps in one block of threads.
        if top_n > 4:
            constants["TOGETHER"] = 1
    return Selection(
        compiler.kernel("split_keys", "split_keys", {**common, "TOGETHER": STREAMING}),
        compiler.kernel(program, "select_blocks", constants, carveout),
    )


@lru_cache(maxsize=64)
def _attention(
    sizes: tuple[int, int, int, int, bool],
    short_path: tuple[int, int, int, int],
    distances: tuple[int, ...],
    causal: bool,
    is_union: bool,
) -> Attention:
    """distances: powers of the short-term path, none where they are those of two."""
    per_group, _, size, *_ = sizes
    names = ("WINDOW", "NEAR", "FIRST_FAR", "FAR_STEPS")
    constants: dict[str, int | str] = {
        **_constants(sizes, causal),
        **dict(zip(names, short_path, strict=True)),
        "UNION": int(is_union),
        "CHUNK": CHUNK[size],
        "TOGETHER": TOGETHER[size],
    }
    both_ways = not (causal or is_union)
    if distances:
        constants["DISTANCES"] = ",".join(map(str, (*distances, LONGEST)))

    def of(program: str, name: str, **others: int) -> Callable[..., None]:
        return compiler.kernel(program, name, {**constants, **others})

    if size in WIDE:
        wide = WIDE[size]
        # A tile has twice as many units as a group has query heads.
        sweep = {"HELD": min(wide.units, 2 * per_group), "TOGETHER": wide.together}
        forward = of("swept_forward", "swept_forward", WARPS_FORWARD=wide.forward, **sweep)
        ring = {"STAGES": wide.stages, "WARPS_RING": wide.keys, "TOGETHER": 1}
        list_sums, keys = (of("ring_keys", name, **ring) for name in ("ring_sums", "ring_keys"))
        near = {"SLOTS": wide.slots, "WARPS_QUERIES": wide.queries, "TOGETHER": 1}
        if both_ways or distances:
            near["WARPS_QUERIES"] = min(wide.queries, BOTH_WAYS_WIDE)
        queries = of("near_queries", "near_queries", **near)
    else:
        resident = RESIDENT[size]
        if distances:
            resident = OTHER_BASE
        elif per_group == 1:
            resident = resident | SINGLE | (SINGLE_UNION if causal and is_union else {})
        constants |= {f"WARPS_{name}": warps for name, warps in resident.items()}
        if both_ways and not distances:
            constants["WARPS_QUERIES"] = BOTH_WAYS if per_group > 1 else BOTH_WAYS_SINGLE
        forward, queries = of("forward", "forward"), of("backward_queries", "backward_queries")
        list_sums, keys = (of("backward_keys", name) for name in ("list_sums", "backward_keys"))
    return Attention(
        of("pack", "pack_blocks", TOGETHER=STREAMING),
        forward,
        queries,
        of("counts", "count_choices", COUNTERS=COUNTERS, TOGETHER=1),
        of("lists", "find_lists", TOGETHER=STREAMING),
        of("lists", "order_choices", TOGETHER=STREAMING),
        list_sums,
        keys,
        of("choices", "add_choices", TOGETHER=STREAMING),
    )
