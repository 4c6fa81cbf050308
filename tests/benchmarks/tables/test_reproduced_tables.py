"""The paper's tables, from lines whose answers are known."""

import pytest
from markdown_cells import cells

from benchmarks.tables import measured_lines, reproduced_tables


@pytest.fixture
def given(monkeypatch):
    """Lines in place of the results file."""

    def give(*lines):
        for module in (reproduced_tables, measured_lines):
            monkeypatch.setattr(module, "read", lambda name: list(lines))

    return give


def line(model, value, seed=0, *, dataset="ml-1m", max_len=200, ranking="full", by_length=()):
    prefix = "" if ranking == "full" else f"{ranking}_"
    return {
        **{"dataset": dataset, "model": model, "max_len": max_len, "seed": seed},
        "ranking": ranking,
        "metrics": {f"{prefix}{name}@10": value for name in ("hr", "ndcg")},
        "validation": {"ndcg@10": 2 * value},
        "by_length": [
            {"low": low, "high": high, "metrics": {"ndcg@10": part}}
            for low, high, part in by_length
        ],
    }


def of_test(model, difference, p_value, *, dataset="ml-1m", max_len=200, seeds=(0, 1)):
    numbers = {"difference": difference, "low": 0.001, "high": 0.003, "p_value": p_value}
    key = {"dataset": dataset, "model": model, "max_len": max_len, "against": "SASRec"}
    return key | {"seeds": list(seeds), "paired": numbers}


@pytest.mark.parametrize("name", reproduced_tables.TABLES)
def test_without_lines_a_table_is_empty(given, name):
    given()
    text = reproduced_tables.TABLES[name]()
    assert text.startswith("| ") and cells(text) == []


def test_models_stand_beside_each_other_in_both_rankings(given):
    given(
        line("popularity", 0.01, dataset="gowalla", max_len=50),
        line("SASRec", 0.9),
        line("SASRec", 0.1),
        line("SASRec", 0.3, 1),
        line("SASRec", 0.6, ranking="uni87-100"),
        line("BlossomRec", 0.25),
        of_test("BlossomRec", 0.9, 0.9),
        of_test("BlossomRec", 0.002, 0.01),
        of_test("popularity", -0.2, 0.0004, dataset="gowalla", max_len=50),
        line("another", 0.5),
        line("SASRec", 0.5, dataset="another"),
        line("SASRec", 0.5, max_len=50),
        {"bench": "encoder"},
    )
    assert cells(reproduced_tables.accuracy()) == [
        ["ml-1m, 200: SASRec", "2", *["0.2000"] * 2, *["0.6000"] * 2, "", ""],
        [
            *("ml-1m, 200: BlossomRec", "1", *["0.2500"] * 2, "", ""),
            *("+0.0020 (+0.0010 to +0.0030)", "0.010"),
        ],
        [
            *("gowalla, 50: popularity", "1", *["0.0100"] * 2, "", ""),
            *("-0.2000 (+0.0010 to +0.0030)", "< 0.001"),
        ],
    ]


def test_a_test_of_fewer_seeds_than_were_trained_says_so(given):
    given(
        *(line(model, 0.2, seed) for model in ("BlossomRec", "HSTU", "GRU4Rec") for seed in (0, 1)),
        of_test("BlossomRec", 0.1, 0.01, seeds=[0, 1]),
        of_test("BlossomRec", 0.2, 0.01, seeds=[0]),
        of_test("HSTU", 0.1, 0.01, seeds=[0]),
        of_test("HSTU", 0.2, 0.01, seeds=[1]),
        of_test("GRU4Rec", 0.1, 0.01, seeds=[0]),
        of_test("GRU4Rec", 0.2, 0.01, seeds=[0, 1]),
    )
    interval = "(+0.0010 to +0.0030)"
    assert {row[0]: row[-2] for row in cells(reproduced_tables.accuracy())} == {
        "ml-1m, 200: BlossomRec": f"+0.1000 {interval}",
        "ml-1m, 200: GRU4Rec": f"+0.2000 {interval}",
        "ml-1m, 200: HSTU": f"+0.2000 {interval}, 1 seed",
    }


def test_choices_that_are_defaults_have_the_numbers_of_the_default(given):
    given(
        line("BlossomRec", 0.2),
        line("BlossomRec (top_n 8)", 0.3),
        of_test("BlossomRec (top_n 8)", 0.1, 0.02),
        of_test("BlossomRec", 0.1, 0.03),
    )
    rows = {row[0]: row[1:] for row in cells(reproduced_tables.choices("parameters"))}
    corrected = "+0.1000 (+0.0010 to +0.0030)"
    assert rows["ml-1m, 200: top n 8"] == ["1", "0.6000", "0.3000", corrected, "0.040"]
    assert rows["ml-1m, 200: top n 4"] == ["1", "0.4000", "0.2000", corrected, "0.040"]
    assert rows["ml-1m, 200: window 8"] == rows["ml-1m, 200: top n 4"]
    assert "ml-1m, 200: top n 2" not in rows


def test_longest_histories_are_columns_and_users_are_told_by_theirs(given):
    short = [(10, 19, 0.1), (500, None, 0.2)]
    given(
        line("SASRec", 0.1, dataset="completejourney", max_len=4_096, by_length=short[1:]),
        line("SASRec", 0.2, dataset="completejourney", max_len=50, by_length=short),
        line("Mamba4Rec", 0.3, dataset="completejourney", max_len=50, by_length=short),
        line("BlossomRec", 0.3, dataset="completejourney", max_len=50, by_length=short),
        of_test("Mamba4Rec", 0.1, 0.024, dataset="completejourney", max_len=50),
        of_test("BlossomRec", 0.1, 0.06, dataset="completejourney", max_len=50),
    )
    text = reproduced_tables.lengths()
    assert text.startswith("| data: model | 50 | 200 | 1,024 | 4,096 |")
    assert cells(text) == [
        ["completejourney: SASRec", "0.2000", "", "", "0.1000"],
        ["completejourney: BlossomRec", "0.3000", "", "", ""],
        ["completejourney: Mamba4Rec", "0.3000 (+)", "", "", ""],
    ]
    text = reproduced_tables.by_length()
    assert text.startswith("| data, longest history: model | 10 to 19 | 500 on |")
    assert cells(text) == [
        ["completejourney, 4,096: SASRec", "", "0.2000"],
        ["completejourney, 50: BlossomRec", "0.1000", "0.2000"],
        ["completejourney, 50: Mamba4Rec", "0.1000", "0.2000"],
    ]


def test_longest_histories_tell_where_fewer_seeds_were_trained(given):
    key = {"dataset": "completejourney", "max_len": 50}
    given(
        *(line("SASRec", value, seed, **key) for seed, value in enumerate((0.1, 0.3))),
        line("BlossomRec", 0.2, **key),
        line("personal-frequency", 0.1, dataset="completejourney", max_len=4_096),
    )
    assert [row[1:] for row in cells(reproduced_tables.lengths())] == [
        ["0.2000", "", "", ""],
        ["0.2000, 1 seed", "", "", ""],
        ["", "", "", "0.1000"],
    ]


def test_sizes_tell_apart_what_makes_block_keys(given):
    given(*(line(model, 0.1) for model in ("SASRec", "BlossomRec", "popularity")))
    (dense, size, nothing), (blossom, whole, chooses) = cells(reproduced_tables.sizes())
    assert (dense, blossom, nothing) == ("SASRec", "BlossomRec", "")
    size, whole, chooses = (int(text.replace(",", "")) for text in (size, whole, chooses))
    assert 0 < size == whole - chooses < chooses


def test_models_of_long_histories_are_tested_beside_each_other(given):
    key = {"dataset": "completejourney", "max_len": 1_024}
    given(
        of_test("BlossomRec", 0.1, 0.01, **key) | {"against": "Mamba4Rec"},
        of_test("BlossomRec", 0.2, 0.03, **key) | {"against": "SASRec (linrec)"},
        of_test("BlossomRec", 0.9, 0.001, **key),
        of_test("SASRec", 0.9, 0.001, **key) | {"against": "Mamba4Rec"},
    )
    data, interval = "completejourney, 1,024: BlossomRec", "(+0.0010 to +0.0030)"
    assert cells(reproduced_tables.comparisons()) == [
        [data, "Mamba4Rec", "2", f"+0.1000 {interval}", "0.020"],
        [data, "SASRec (linrec)", "2", f"+0.2000 {interval}", "0.030"],
    ]


def test_the_short_table_has_a_column_for_each_model(given):
    given(line("SASRec", 0.2), line("SASRec", 0.4, 1), line("Mamba4Rec", 0.1))
    assert cells(reproduced_tables.in_short()) == [["ml-1m, 200", "0.3000", "0.1000"]]


def test_one_more_event_stands_by_what_came_before(given):
    given(
        *(
            {"measure": "one more event", "model": model, "length": length, "ms": 0.5, "ratio": 1}
            for length in (4_096, 1_024)
            for model in ("SASRec", "BlossomRec")
        )
    )
    assert cells(reproduced_tables.events()) == [
        ["1,024", "0.50 (1.00)", "0.50 (1.00)"],
        ["4,096", "0.50 (1.00)", "0.50 (1.00)"],
    ]
