import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.speed.bench_options import PUBLISHED, BenchOptions, Layout
from benchmarks.speed.history_lengths import equal_lengths, packed, real_lengths
from benchmarks.speed.instruments import memory, timing
from benchmarks.speed.instruments.floor import Volume, copy_rate, floor_mib, floor_milliseconds
from benchmarks.speed.speed_lines import describe, result_line
from blossomrec.errors import ConfigError


def test_time_is_the_median_in_milliseconds():
    pauses = iter([0.0, 0.0, 0.2, 0.004, 0.004, 0.004, 0.2])
    found = timing.milliseconds(lambda: time.sleep(next(pauses)), "cpu")
    assert 4 <= found < 60


def measured_hold() -> float:
    """Peak of a call that holds 24 MiB, then 16, in a process that had held 100 before."""

    def hold():
        first = torch.ones(24 << 20, dtype=torch.uint8)
        del first
        torch.ones(16 << 20, dtype=torch.uint8)

    earlier = torch.ones(100 << 20, dtype=torch.uint8)
    del earlier
    return memory.peak_mib(hold, "cpu")


def test_memory_is_what_a_call_held_at_most():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not forget an earlier peak")
    # As in a bench: here, other tests have left memory behind in which there may be room.
    assert memory.alone(measured_hold) == pytest.approx(24, abs=4)


def test_alone_is_another_process():
    assert memory.alone(os.getpid) != os.getpid()
    assert memory.free_bytes("cpu") > 1 << 20


def test_equal_and_real_lengths(tiny_log):
    assert equal_lengths(100, 350) == (100, 100, 100)
    assert equal_lengths(100, 50) == (100,)
    lengths = real_lengths(tiny_log.folder, 500)
    assert lengths == real_lengths(tiny_log.folder, 500)
    assert sum(lengths) == 500 and len(set(lengths)) > 5
    known = np.diff(np.asarray(tiny_log.offsets)).tolist()
    assert set(lengths[:-1]) <= set(known)
    assert sum(real_lengths(tiny_log.folder, 10**6)) == tiny_log.num_events
    assert packed((3, 1, 2), "cpu").tolist() == [0, 3, 4, 6]
    assert packed((3,), "cpu").dtype == torch.int32


def test_the_volume_of_the_floor_counted_event_by_event():
    heads, groups, size, item = 4, 2, 8, 2
    lengths = (1, 16, 70, 300)
    forward = keys = 0
    for length in lengths:
        for event in range(length):
            chosen = min(4, event // 16)
            far = sum(8 <= 1 << power <= event for power in range(12))
            forward += groups * (chosen * 16 + far) * 2 * size * item
            keys += heads * (chosen + far) * 2 * size * item
    volume = Volume.of(lengths, Layout(heads, groups, size), item)
    assert (volume.gather_forward, volume.gather_backward) == (forward, forward + keys)
    event = (2 * heads + 2 * groups) * size + 2 * heads
    assert volume.memory_forward == sum(lengths) * event * item
    assert volume.memory_backward == 2 * volume.memory_forward


def test_the_published_volume_on_the_published_machine():
    """131,072 events at 4.21 TB/s: 0.02 ms forward, 0.06 ms with backward."""
    volume = Volume.of((1_024,) * 128, PUBLISHED, 2)
    assert volume.memory_forward / 4.21e9 == pytest.approx(0.02, abs=0.002)
    both = volume.memory_forward + volume.memory_backward
    assert both / 4.21e9 == pytest.approx(0.06, abs=0.004)


def test_the_floor_on_a_cpu_is_that_of_memory():
    found = floor_milliseconds((64, 64), PUBLISHED, torch.float32, "cpu")
    volume = Volume.of((64, 64), PUBLISHED, 4)
    assert set(found) == {"forward_ms", "forward_backward_ms", "copy_tb_s"}
    share = found["forward_ms"] / found["forward_backward_ms"]
    both = volume.memory_forward + volume.memory_backward
    assert share == pytest.approx(volume.memory_forward / both)
    assert copy_rate("cpu") > 0
    assert floor_mib((2**20,), Layout(8, 2, 16), 2) == 2 * (2 * 128 + 2 * 32 + 16)


def test_every_event_gathers_blocks_of_its_own_past():
    pytest.importorskip("triton")
    from benchmarks.speed.instruments.gather import gather_sums, random_choice

    lengths = (64, 32, 160)
    chosen = random_choice(packed(lengths, "cpu"), 256, 2, 16, 4).view(256, 2, 4)
    event = torch.arange(256)
    first = torch.tensor([0] * 64 + [64] * 32 + [96] * 160)
    for group in range(2):
        assert (chosen[:, group] % 2 == group).all()
        block = chosen[:, group] // 2
        assert (block >= first[:, None] // 16).all() and (block <= event[:, None] // 16).all()
    assert len(chosen[200, 0].unique()) > 1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    blocks = torch.randn(34, 64, device=device)
    few = chosen[::32].flatten(0, 1).to(device)
    sums = gather_sums(blocks, few)
    torch.testing.assert_close(sums, blocks[few.long()].sum((1, 2)))


def test_a_line_has_the_fields_that_old_lines_have():
    line = result_line(
        "attention",
        "torch",
        PUBLISHED,
        length=256,
        tokens=512,
        dtype=torch.bfloat16,
        device="cpu",
        compress="mean",
        forward_ms=1.23456789,
        peak_mib=3.14159,
    )
    assert list(line) == [
        "bench",
        "impl",
        "length",
        "tokens",
        "heads",
        "kv_heads",
        "head_dim",
        "dtype",
        "compress",
        "forward_ms",
        "forward_backward_ms",
        "peak_mib",
        "hardware",
        "versions",
        "commit",
    ]
    assert (line["heads"], line["kv_heads"], line["head_dim"]) == (8, 2, 16)
    assert line["dtype"] == "bfloat16" and line["forward_backward_ms"] is None
    assert (line["forward_ms"], line["peak_mib"]) == (1.2346, 3.1)
    shown = describe(line)
    assert "256 8/2/16" in shown and "forward 1.235 ms, peak 3.1 MiB" in shown
    assert "backward" not in shown


@pytest.mark.parametrize(
    "wrong", [{"lengths": (64, 0)}, {"tokens": 0}, {"steps": 0}, {"users": (1, -1)}]
)
def test_sizes_that_make_no_sense(wrong):
    given = {"device": "cpu", "dtype": torch.float32, "lengths": (64,), "tokens": 64, **wrong}
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} is"):
        BenchOptions(**given)
