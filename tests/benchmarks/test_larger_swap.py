"""The measured swap to a larger vocabulary, small."""

import json


def test_a_swap_is_measured_in_its_phases(benchmarks, tmp_path):
    out = tmp_path / "out.jsonl"
    size = ["--items", 40, "--users", 3, "--history", 20, "--seconds", 1, "--repeats", 1]
    shown = benchmarks("swap", *size, "--out", out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    phases = [line["phase"] for line in lines]
    # So small a run may be taken between two requests.
    wanted = ("before", "reading", "preparing", "after")
    assert phases == [name for name in wanted if name in phases]
    assert (phases[0], phases[-1]) == ("before", "after")
    for line in lines:
        assert (line["scenario"], line["items"], line["errors"]) == ("larger-swap", 40, 0)
        assert f"{line['phase']} seconds {line['seconds']} requests {line['requests']}" in shown
    assert lines[0]["requests"] > 50 and lines[-1]["requests"] > 50
