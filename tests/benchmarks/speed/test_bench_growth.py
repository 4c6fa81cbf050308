"""The bench of a log that grows runs, and says what it has measured."""

from __future__ import annotations

import json

from benchmarks.speed import bench_growth


def test_a_small_log(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_growth, "alone", lambda function, *given: function(*given))
    monkeypatch.setattr(bench_growth, "USERS", 40)
    monkeypatch.setattr(bench_growth, "ITEMS", 20)
    out = tmp_path / "growth.jsonl"
    bench_growth.measure_growth(parts=2, events=2_000, appended=100, out=out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["bench"] for line in lines] == ["append"] * 3 + ["merge", "forget"]
    assert [line["events"] for line in lines] == [4_000] * 3 + [4_300] * 2
    assert all(line["appended"] == 100 and 50 < line["late"] <= 100 for line in lines[:3])
    assert lines[3]["segments"] == 3 and lines[4]["removed"] > 50
    assert all(line["seconds"] > 0 and line["peak_mib"] > 0 and line["hardware"] for line in lines)
    assert capsys.readouterr().out.count(" MiB") == 5
