"""The tables of accuracy, from lines whose answers are known."""

from markdown_cells import cells

from benchmarks.tables import accuracy_tables, measured_lines


def line(model, value, seed=0, max_len=50, dataset="gowalla", ranking="full", epochs=10):
    prefix = "" if ranking == "full" else f"{ranking}_"
    metrics = {f"{prefix}{name}@10": value for name in ("hr", "mrr", "ndcg")}
    names = {"dataset": dataset, "model": model, "max_len": max_len, "seed": seed}
    return {**names, "ranking": ranking, "metrics": metrics, "epochs": epochs}


def test_seeds_and_epochs_stand_beside_the_means(monkeypatch):
    lines = [
        line("SASRec", 0.2, epochs=20),
        line("SASRec", 0.4, seed=1),
        line("SASRec", 0.9, ranking="uni100"),
        line("BlossomRec", 0.1, dataset="ml-1m", max_len=200),
    ]
    monkeypatch.setattr(measured_lines, "read", lambda name: lines)
    assert cells(accuracy_tables.accuracy("full")) == [
        ["ml-1m, 200", "BlossomRec", "1", "10", *["0.1000"] * 3],
        ["gowalla, 50", "SASRec", "2", "15", *["0.3000"] * 3],
    ]
    assert cells(accuracy_tables.accuracy("uni100")) == [
        ["gowalla, 50", "SASRec", "1", "10", *["0.9000"] * 3]
    ]


def test_longest_histories_are_columns_and_what_was_not_measured_is_empty(monkeypatch):
    lines = [
        line("SASRec", 0.2, max_len=1_024),
        line("SASRec", 0.1),
        line("BlossomRec", 0.3),
        line("BlossomRec", 0.9, ranking="uni100", max_len=4_096),
    ]
    monkeypatch.setattr(accuracy_tables, "read", lambda name: lines)
    text = accuracy_tables.lengths()
    assert text.splitlines()[0] == "| data | model | 50 | 1,024 |"
    assert cells(text) == [
        ["gowalla", "SASRec", "0.1000", "0.2000"],
        ["gowalla", "BlossomRec", "0.3000", ""],
    ]


def test_differences_to_dense_attention_are_corrected_over_the_table(monkeypatch):
    test = {"difference": -0.01, "low": -0.02, "high": -0.001, "p_value": 0.03}
    lines = [
        line("SASRec", 0.2) | {"validation": {"ndcg@10": 0.3}},
        line("BlossomRec", 0.1) | {"validation": {"ndcg@10": 0.2}, "paired": test},
        line("BlossomRec-8kv", 0.2)
        | {"validation": {"ndcg@10": 0.2}, "paired": test | {"p_value": 0.0001}},
        line("SASRec", 0.5, max_len=1_024, dataset="long") | {"validation": {"ndcg@10": 0.5}},
    ]
    monkeypatch.setattr(measured_lines, "read", lambda name: lines)
    shown = "-0.0100 (-0.0200 to -0.0010)"
    assert cells(accuracy_tables.fusion(long=False)) == [
        ["gowalla, 50", "SASRec", "1", "0.3000", "0.2000", "", ""],
        ["gowalla, 50", "BlossomRec", "1", "0.2000", "0.1000", shown, "0.030"],
        ["gowalla, 50", "BlossomRec-8kv", "1", "0.2000", "0.2000", shown, "< 0.001"],
    ]


def test_another_study_of_the_file_has_a_table_of_its_own(monkeypatch):
    validation = {"validation": {"ndcg@10": 0.3}}
    lines = [
        line("BERT4Rec", 0.2) | validation,
        line("BERT4Rec", 0.1) | validation | {"study": "near bias"},
    ]
    monkeypatch.setattr(measured_lines, "read", lambda name: lines)
    tables = [accuracy_tables.TABLES[name]() for name in ("fusion", "near-bias")]
    assert [cells(text)[0][4] for text in tables] == ["0.2000", "0.1000"]


def test_what_training_changes_stands_below_what_is_as_it_is(monkeypatch):
    lines = [
        line("SASRec", value)
        | {"validation": {"ndcg@10": 0.5}, "changed": changed, "best_epoch": 7}
        for value, changed in ((0.1, "no average"), (0.2, ""))
    ]
    monkeypatch.setattr(accuracy_tables, "read", lambda name: lines)
    assert cells(accuracy_tables.training_options()) == [
        ["gowalla, 50: SASRec", "as it is", "0.5000", "0.2000", "7"],
        ["gowalla, 50: SASRec", "no average", "0.5000", "0.1000", "7"],
    ]
