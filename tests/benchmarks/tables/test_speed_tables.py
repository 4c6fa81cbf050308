"""Tables of time and memory, from lines whose answers are known."""

from markdown_cells import cells

from benchmarks.tables import speed_tables


def ranked(impl, seconds, users=10_000, k=10, filters=False, **more):
    line = {"bench": "ranking", "impl": impl, "users": users, "items": 1_000_000, "hidden": 128}
    line |= {"dtype": "float32", "k": k, "filters": filters, "seconds": seconds, "peak_mib": 600.4}
    line |= {"users_per_second": round(users / seconds), "hardware": "NVIDIA H200", "commit": "b"}
    return line | more


def test_ranking_stands_beside_the_product_and_topk(monkeypatch):
    lines = [
        ranked("blossomrec", 9.0, commit="a"),
        ranked("product", 0.05, k=None),
        ranked("blossomrec", 0.0125),
        ranked("topk", 0.05, users=1_000),
        ranked("blossomrec", 0.025, filters=True),
        ranked("topk", 0.1, users=1_000, filters=True),
    ]
    monkeypatch.setattr(speed_tables, "read", lambda name: lines)
    start = ["1,000,000", "128", "float32", "10"]
    assert cells(speed_tables.ranking()) == [
        [*start, "", "12.5", "800,000", "0.25", "40.0", "600"],
        [*start, "half, 200 seen", "25.0", "400,000", "0.50", "40.0", "600"],
    ]
