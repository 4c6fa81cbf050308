"""Tables of models that were tuned alike, from lines whose answers are known."""

import pytest
from markdown_cells import cells

from benchmarks.accuracy.tuned_study import training_with
from benchmarks.tables import tuned_tables


def trial(model, number, validation, **options):
    named = {"model.dropout": 0.2, "model.layers": 2} | {
        name.replace("__", "."): value for name, value in options.items()
    }
    line = {"measure": "trial", "dataset": "amazon-beauty", "model": model, "trial": number}
    return line | {"most_epochs": None, "options": named, "validation": validation}


def training(of, value, seed, ranking="full"):
    """A training with the options of a trial."""
    done = training_with(of["options"], of["dataset"], of["model"], seed)
    metrics = {"hr@10": 2 * value, "ndcg@10": value}
    line = {"dataset": of["dataset"], "model": of["model"], "seed": seed, "ranking": ranking}
    return line | {"metrics": metrics, "options": done.options}


@pytest.fixture
def given(monkeypatch):
    def give(*lines):
        monkeypatch.setattr(tuned_tables, "read", lambda name: list(lines))

    return give


def test_tuned_models_stand_beside_each_other(given):
    numbers = {"difference": 0.002, "low": 0.001, "high": 0.003, "p_value": 0.02}
    first, second = trial("SASRec", 0, 0.1), trial("SASRec", 1, 0.125, model__layers=3)
    other = trial("BlossomRec", 0, 0.125, model__top_n=8, training__weight_decay=0.0123)
    equal = trial("BlossomRec", 1, 0.125, model__top_n=4)
    test = {"dataset": "amazon-beauty", "model": "BlossomRec", "against": "SASRec"}
    changed = [
        training_with(of["options"], of["dataset"], of["model"]).form.changed
        for of in (other, second, first)
    ]
    tests = [
        test | {"changed": changed[:2], "paired": numbers},
        # Of what was best before another trial.
        test | {"changed": changed[::2], "paired": numbers | {"difference": 0.5}},
    ]
    given(
        # Trials were measured twice: the last counts. Other options are not shown, nor trainings
        # that were cut short.
        trial("SASRec", 2, 0.9) | {"most_epochs": 1},
        *(trial("SASRec", 0, 0.2), second, first),
        *(training(first, 0.6, seed) for seed in (0, 1)),
        *(training(second, value, seed) for seed, value in enumerate((0.9, 0.1))),
        *(training(second, 0.3, 0), training(second, 0.7, 0, "uni100")),
        *(other, equal, training(other, 0.25, 0), *tests),
        # Not trained with what was best yet.
        trial("GRU4Rec", 0, 0.1),
    )
    assert cells(tuned_tables.tuned()) == [
        [
            *("amazon-beauty: SASRec", "2", "2", "0.1000", "0.1250"),
            *("0.4000", "0.2000", "", ""),
        ],
        [
            *("amazon-beauty: BlossomRec", "2", "1", "0.1250", "0.1250", "0.5000", "0.2500"),
            *("+0.0020 (+0.0010 to +0.0030)", "0.020"),
        ],
    ]
    text = tuned_tables.options()
    assert text.startswith("| data: model | dropout | layers | top n | weight decay |")
    assert cells(text) == [
        ["amazon-beauty: SASRec", "0.2", "3", "", ""],
        ["amazon-beauty: BlossomRec", "0.2", "2", "8", "0.012"],
    ]


def test_without_trainings_tables_say_so(given):
    given(trial("SASRec", 0, 0.1))
    assert tuned_tables.tuned() == "Not measured yet.\n" == tuned_tables.options()
