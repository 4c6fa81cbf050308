"""Tables of logs and recommendations, from lines whose answers are known."""

from markdown_cells import cells

from benchmarks.tables import data_tables


def test_rates_of_a_machine_that_others_used_are_left_out(monkeypatch):
    size = {"users": 3_000, "items": 50_000, "events": 9, "k": 100, "threads": 2}
    given = {"bench": "bulk", "rules": "none", **size, "peak_mib": 9.6}
    rate = {"users_per_second": 1_000.2, "scores_per_second": 50_000_000}
    lines = [{**given, **rate, "load": load} for load in (2.1, 2.0)]
    monkeypatch.setattr(data_tables, "read", lambda name: [*lines, {"bench": "bulk engines"}])
    assert cells(data_tables.bulk()) == [
        ["none", "local", "3,000", "50,000", "9", "100", "2", "2.0", "1,000", "50", "10"]
    ]
