"""The tables of inputs, from lines whose answers are known."""

from markdown_cells import cells

from benchmarks.tables import feature_tables


def line(score, *, seed=0, time="none", request=False, cold=None, **others):
    return {
        "dataset": "films",
        "attention": "blossom",
        "time": time,
        "request_time": request,
        "content": False,
        "seed": seed,
        "metrics": {"ndcg@10": score},
        "cold_metrics": cold or {},
    } | others


def test_a_form_is_compared_with_ids_of_the_same_seeds(monkeypatch):
    lines = [
        line(0.9, seed=7),
        line(0.1),
        line(0.2, seed=1),
        line(0.12, time="gap"),
        line(0.24, time="gap", seed=1),
        line(0.3, time="gap", request=True, seed=3),
    ]
    monkeypatch.setattr(feature_tables, "read", lambda name: lines)
    assert cells(feature_tables.features()) == [
        ["films, blossom: gap", "2", "0.1800", "+20.0%"],
        ["films, blossom: gap, moment of the request", "1", "0.3000", ""],
        ["films, blossom: ids", "3", "0.4000", ""],
    ]


def test_cold_items_have_their_own_table(monkeypatch):
    cold = {"targets": 1_200, "recall@10": 0.01, "recall@10 among cold items": 0.25}
    lines = [
        line(0.1, cold={"targets": 1_200, "recall@10": 0.0}),
        line(0.1, cold=cold, content=True, id_dropout=0.5),
    ]
    monkeypatch.setattr(feature_tables, "read", lambda name: lines)
    assert cells(feature_tables.cold_items()) == [
        ["films: content, id dropout 0.5", "0.1000", "1,200", "0.0100", "0.250", ""],
        ["films: ids", "0.1000", "1,200", "0.0000", "", ""],
    ]
