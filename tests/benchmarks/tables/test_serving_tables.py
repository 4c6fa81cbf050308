"""The tables of a server, from lines whose answers are known."""

from markdown_cells import cells

from benchmarks.tables import serving_tables


def step(history, step_ms, recompute_ms):
    line = {"scenario": "step", "users": 256, "history": history}
    return line | {"step_ms": step_ms, "recompute_ms": recompute_ms}


def test_a_later_step_replaces_an_earlier_one_and_histories_rise(monkeypatch):
    lines = [
        {"scenario": "mixed", "users": 10, "history": 50},
        step(16_000, 9.0, 9.0),
        step(16_000, 2.0, 250.04),
        step(2_000, 1.375, 22.0),
    ]
    monkeypatch.setattr(serving_tables, "read", lambda name: lines)
    assert cells(serving_tables.steps()) == [
        ["256", "2,000", "1.38", "22.0", "16"],
        ["256", "16,000", "2.00", "250.0", "125"],
    ]


def test_rules_are_compared_with_answers_without(monkeypatch):
    def line(where, rules, p50_ms):
        return {"scenario": "rules", "where": where, "rules": rules, "p50_ms": p50_ms}

    lines = [
        line("engine", "none", 9.0),
        line("engine", "none", 4.0),
        line("engine", "max_per", 5.0),
        line("library", "none", 10.0),
        line("library", "max_per", 14.0),
        {"scenario": "mixed", "users": 10, "history": 50},
    ]
    monkeypatch.setattr(serving_tables, "read", lambda name: lines)
    assert cells(serving_tables.rules()) == [
        ["none", "4.00", "1.00", "10.00", "1.00"],
        ["max_per", "5.00", "1.25", "14.00", "1.40"],
    ]


def swap(phase, p99, commit="b", **more):
    line = {"scenario": "larger-swap", "phase": phase, "items": 2_000, "commit": commit}
    return line | {"seconds": 2.0, "requests": 10, "errors": 0, "p50_ms": 4.0, "p99_ms": p99} | more


def test_swaps_show_the_median_and_the_range_of_the_last_measurement(monkeypatch):
    lines = [swap(phase, 1.0) for phase in ("before", "preparing", "after")]
    lines += [swap("reading", 99.0, commit="a"), swap("reading", 9.0, errors=1)]
    lines += [swap("reading", 30.0, seconds=4.0), swap("reading", 12.04, p50_ms=7.0)]
    monkeypatch.setattr(serving_tables, "read", lambda name: lines)
    found = cells(serving_tables.larger_swaps())
    assert [row[1] for row in found] == list(serving_tables.PHASES.values())
    assert found[0] == ["2,000", "before", "2.0", "10", "0", "4.0", "1.0", "1.0 to 1.0"]
    reading = ["2,000", "the new run is read", "2.0", "30", "1", "4.0", "12.0", "9.0 to 30.0"]
    assert found[1] == reading
