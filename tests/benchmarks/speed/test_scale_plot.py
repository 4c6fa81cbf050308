"""The picture of several GPUs: measured points filled, computed ones hollow."""

import pytest

from benchmarks.speed.length_plots import described
from benchmarks.speed.scale_plot import as_many_each, draw_scale


def line(gpus, tokens, rate, **others):
    sizes = {"items": 1_000, "length": 64, "loss": "exact", "gpus": gpus}
    return {**sizes, "tokens_per_rank": tokens, "events_per_second": rate, **others}


LINES = [
    line(4, 64, 3.5e6, computed=True),
    line(1, 64, 1e6),
    line(2, 64, 1.9e6),
    line(2, 32, 1.5e6),
    line(2, 64, 9e6, items=2_000),
]


def test_points_are_those_with_as_many_events_for_each():
    ((name, points),) = as_many_each(LINES).items()
    assert name == "1,000 items, histories of 64: exact"
    assert [each["gpus"] for each in points] == [1, 2, 4]


def test_computed_points_are_hollow(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra plots")
    draw_scale(LINES, tmp_path / "scale.svg")
    text = (tmp_path / "scale.svg").read_text()
    assert described(LINES) in text and "million events a second" in text
    # The one hollow marker is white inside.
    assert text.count("fill: #ffffff; stroke: #2f6fb5") == 1
