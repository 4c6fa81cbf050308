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


INTERVAL = "(+0.0100 to +0.0500)"


def paired(against, p_value):
    numbers = {"difference": 0.03, "low": 0.01, "high": 0.05, "p_value": p_value}
    return {"against": against, **numbers}


def test_a_form_is_compared_with_ids_of_the_same_seeds(monkeypatch):
    lines = [
        line(0.9, seed=7),
        line(0.1),
        line(0.2, seed=1),
        line(0.12, time="gap"),
        line(0.24, time="gap", seed=1, paired=paired("ids", 0.0004)),
        line(0.3, time="gap", request=True, seed=3, paired=paired("gap", 0.25)),
        line(0.9, kinds="seen", protocol="leave-one-out, targets: buy"),
    ]
    monkeypatch.setattr(feature_tables, "read", lambda name: lines)
    assert cells(feature_tables.features()) == [
        ["films, blossom: gap", "2", "0.1800", "+20.0%", f"+0.0300 {INTERVAL}, p < 0.001"],
        [
            *("films, blossom: gap, moment of the request", "1", "0.3000", ""),
            f"+0.0300 than gap {INTERVAL}, p = 0.250",
        ],
        ["films, blossom: ids", "3", "0.4000", "", ""],
    ]


def test_forms_of_a_wanted_kind_have_their_own_table(monkeypatch):
    wanted = {"protocol": "leave-last-5-out, targets: buy"}

    def bought(score, **others):
        return line(score, metrics={"ndcg@10": score, "hr@10": 2 * score}, **wanted, **others)

    lines = [
        line(0.9),
        bought(0.1),
        bought(0.2, validated_on_all=True),
        bought(0.2, kinds="seen, asked", targets="buy=1,click=0.1"),
        bought(
            0.4, kinds="seen, asked", targets="buy=1,click=0.1", seed=1, paired=paired("ids", 0.01)
        ),
        bought(0.3, kinds="seen", context=True, cold={"targets": 1}),
    ]
    monkeypatch.setattr(feature_tables, "read", lambda name: lines)
    start = "films, blossom, buy:"
    assert cells(feature_tables.kinds()) == [
        [f"{start} ids", "1", "0.1000", "0.2000", ""],
        [f"{start} ids, validated on all kinds", "1", "0.2000", "0.4000", ""],
        [
            f"{start} kinds seen and asked, targets buy=1,click=0.1",
            *("2", "0.3000", "0.6000", f"+0.0300 {INTERVAL}, p = 0.010"),
        ],
        [f"{start} kinds seen, context", "1", "0.3000", "0.6000", ""],
    ]
    assert "buy" not in feature_tables.features() + feature_tables.cold_items()


def test_cold_items_have_their_own_table(monkeypatch):
    cold = {"targets": 1_200, "recall@10": 0.01, "recall@10 among cold items": 0.25}
    lines = [
        line(0.1, cold={"targets": 1_200, "recall@10": 0.0}),
        line(0.1, cold=cold, content=True, id_dropout=0.5),
        line(0.3, cold=cold | {"recall@10": 0.02}, content=True, id_dropout=0.5, seed=1),
    ]
    monkeypatch.setattr(feature_tables, "read", lambda name: lines)
    assert cells(feature_tables.cold_items()) == [
        ["films: content, id dropout 0.5", "2", "0.2000", "1,200", "0.0150", "0.250", ""],
        ["films: ids", "1", "0.1000", "1,200", "0.0000", "", ""],
    ]


def test_targets_of_each_kind_and_rare_ones_have_theirs(monkeypatch):
    kinds = {"liked": {"ndcg@10": 0.2}, "seen": {"ndcg@10": 0.4}}
    lines = [
        line(0.1, kind_metrics=kinds, targets="liked=1,seen=0.2"),
        line(0.2, rare_metrics={"targets": 40, "ndcg@10": 0.05}),
    ]
    monkeypatch.setattr(feature_tables, "read", lambda name: lines)
    assert cells(feature_tables.by_kind()) == [
        [
            "films, blossom: ids, targets liked=1,seen=0.2",
            *("1", "0.1000", "liked 0.2000, seen 0.4000"),
        ]
    ]
    assert cells(feature_tables.rare_items()) == [
        ["films, blossom: ids", "1", "0.2000", "40", "0.0500"]
    ]
    assert "targets" not in feature_tables.features()
