"""Tables of models that were tuned alike, from lines whose answers are known."""

import pytest
from markdown_cells import cells

from benchmarks.tables import tuned_tables


def search(model, *, trials=12, options=None, dataset="one", first=0.1):
    return {
        **{"measure": "tuning", "dataset": dataset, "model": model, "trials": trials},
        **{"first_validation": first, "validation": 0.125, "options": options or {}},
    }


def training(model, value, seed, ranking="full"):
    metrics = {"hr@10": 2 * value, "ndcg@10": value}
    line = {"dataset": "one", "model": model, "seed": seed, "ranking": ranking}
    return line | {"metrics": metrics}


@pytest.fixture
def given(monkeypatch):
    def give(*lines):
        monkeypatch.setattr(tuned_tables, "read", lambda name: list(lines))

    return give


def test_tuned_models_stand_beside_each_other(given):
    numbers = {"difference": 0.002, "low": 0.001, "high": 0.003, "p_value": 0.02}
    given(
        *(training("SASRec", value, seed) for seed, value in enumerate((0.9, 0.1))),
        training("SASRec", 0.3, 0),
        training("SASRec", 0.7, 0, "uni100"),
        search("SASRec", trials=3, options={"model.layers": 1}),
        search("SASRec", options={"model.layers": 3, "training.weight_decay": 0.0123}),
        training("BlossomRec", 0.25, 0),
        search("BlossomRec", options={"model.layers": 2, "model.top_n": 8}, first=None),
        {"dataset": "one", "model": "BlossomRec", "against": "SASRec", "paired": numbers},
    )
    assert cells(tuned_tables.tuned()) == [
        ["one: SASRec", "12", "2", "0.1000", "0.1250", "0.4000", "0.2000", "", ""],
        [
            *("one: BlossomRec", "12", "1", "", "0.1250", "0.5000", "0.2500"),
            *("+0.0020 (+0.0010 to +0.0030)", "0.020"),
        ],
    ]
    text = tuned_tables.options()
    assert text.startswith("| data: model | layers | weight decay | top n |")
    assert cells(text) == [
        ["one: SASRec", "3", "0.012", ""],
        ["one: BlossomRec", "2", "", "8"],
    ]


def test_without_lines_tables_are_empty(given):
    given()
    assert cells(tuned_tables.tuned()) == [] == cells(tuned_tables.options())
