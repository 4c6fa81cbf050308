"""What follows for four and eight GPUs from one and two, by hand."""

import pytest
import torch
from test_catalogue_tables import scale_line

from benchmarks.speed.collectives import ALL_GATHER, COLLECTIVES, REDUCE_SCATTER
from benchmarks.tables import more_gpus
from blossomrec.losses.sharded import sharded_cross_entropy
from blossomrec.ranks import Ranks


def collective_line(name, rate, *, mib=256, hardware="NVIDIA H200; 32 cores"):
    return {
        "bench": "collectives",
        "gpus": 2,
        "mib": mib,
        "collective": name,
        "gb_per_second": rate,
        "hardware": hardware,
    }


COLLECTIVE_LINES = [collective_line(name, 100.0) for name in COLLECTIVES]


def test_bytes_of_a_step_by_hand():
    found = more_gpus.sizes(4, 10, hidden_size=16, encoder=7)
    # 40 rows: 16 numbers in 16 bits, a target, a weight, two float32 of each of four ranks.
    assert found == {
        "all_gather": 40 * (32 + 8 + 4 + 32),
        "reduce_scatter": 40 * 64,
        "all_to_all": 2 * 10 * 64,
        "all_reduce": 28,
    }


class Counting(Ranks):
    """A rank whose others have what it has; it counts the bytes of the collectives."""

    def count(self, name, x):
        counted[name] = counted.get(name, 0) + x.nbytes
        return x

    def gather(self, x):
        return self.count(ALL_GATHER, torch.cat([x] * self.size))

    def sum_to_owners(self, x):
        return self.count(REDUCE_SCATTER, x)[: len(x) // self.size]


counted: dict[str, int] = {}


def test_bytes_are_those_that_the_loss_sends():
    counted.clear()
    hidden = torch.randn(6, 16, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(5, 16, dtype=torch.bfloat16, requires_grad=True)
    ranks, targets = Counting(rank=0, size=3), torch.arange(6) % 5
    losses = sharded_cross_entropy(hidden, weight, targets, ranks, first=0, longest=6)
    losses.sum().backward()
    expected = more_gpus.sizes(3, 6, hidden_size=16, encoder=0)
    assert counted == {name: expected[name] for name in (ALL_GATHER, REDUCE_SCATTER)}


def test_two_gpus_take_what_was_measured():
    assert more_gpus.step_seconds(0.1, 0.13, 0.01, 0.01) == pytest.approx(0.13)


def test_a_step_of_four_by_hand(monkeypatch):
    monkeypatch.setattr(more_gpus, "encoder_parameters", lambda size, length: 1_000_000)
    events = 65_536
    one, two = (
        scale_line(count, events, count * events / step) | {"step_ms": 1e3 * step}
        for count, step in ((1, 0.1), (2, 0.12))
    )
    four, eight = more_gpus.computed([one, two], COLLECTIVE_LINES)
    # At 100 GB a second, the halves or three quarters of what the ranks have together.
    of_two = 0.5 * events * (2 * (256 + 12 + 16) + 2 * 512 + 1_024) + 4_000_000
    of_four = 0.75 * events * (4 * (256 + 12 + 32) + 4 * 512 + 1_024) + 1.5 * 4_000_000
    step = 0.12 + (of_four - of_two) / 100e9
    assert four["step_ms"] == pytest.approx(1e3 * step, abs=1e-3)
    assert four["events_per_second"] == pytest.approx(4 * events / step, rel=1e-6)
    assert (four["gpus"], eight["gpus"], four["computed"]) == (4, 8, True)
    assert eight["table_mib"] == pytest.approx(2_441.4 / 8, abs=0.05)
    assert four["step_ms"] < eight["step_ms"]


def test_nothing_is_computed_without_all_collectives_of_that_gpu():
    lines = [scale_line(count, 64, 1e5) | {"step_ms": 1.0} for count in (1, 2)]
    others = [line | {"hardware": "NVIDIA H100; 32 cores"} for line in COLLECTIVE_LINES]
    assert more_gpus.computed(lines, []) == []
    assert more_gpus.computed(lines, COLLECTIVE_LINES[:3]) == []
    assert more_gpus.computed(lines, others) == []
    assert len(more_gpus.computed(lines, COLLECTIVE_LINES)) == 2


def test_nothing_is_computed_of_what_one_was_not_measured_at_or_four_were():
    lines = [scale_line(count, 64, 1e5) | {"step_ms": 1.0} for count in (1, 2, 4)]
    sampled = [line | {"loss": "sampled"} for line in lines[:2]]
    assert [line["gpus"] for line in more_gpus.computed(lines, COLLECTIVE_LINES)] == [8]
    assert more_gpus.computed(lines[1:2], COLLECTIVE_LINES) == []
    assert more_gpus.computed(sampled, COLLECTIVE_LINES) == []


def test_the_largest_size_is_the_bandwidth():
    small = [collective_line(name, 1.0, mib=0.0625) for name in COLLECTIVES]
    found = more_gpus.bandwidths([*COLLECTIVE_LINES, *small], "NVIDIA H200")
    assert set(found.values()) == {100e9}


def test_the_encoder_is_what_is_not_the_item_table():
    small, large = (more_gpus.encoder_parameters(size, 16) for size in (16, 32))
    assert 16 * 16 < small < large
