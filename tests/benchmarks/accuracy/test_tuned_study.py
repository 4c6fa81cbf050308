"""Models tuned alike: what is searched, trained with what was best, tested and not done again."""

import json

import pytest
from jobs_in_this_process import run_jobs_here

from benchmarks.accuracy import accuracy_study, paper_tables, tuned_study
from benchmarks.accuracy.accuracy_study import Preset
from benchmarks.accuracy.paper_tables import DENSE, TABLES, Form, PaperTable
from benchmarks.accuracy.tuned_study import SPACES, Case
from blossomrec.data.log import EventLog
from blossomrec.errors import BlossomRecError
from blossomrec.tuning import search
from blossomrec.tuning.space import names, read_space

pytest.importorskip("optuna")
SMALL = {"hidden_size": 16, "heads": 2, "inner_size": 16}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_trained_model_of_the_table_of_accuracy_has_a_space_of_its_own():
    trained = [form for form in TABLES["accuracy"].forms if not form.baseline]
    published = {form.name for form in trained if "as published" in form.name}
    linear = {"BERT4Rec (linrec)", "BERT4Rec (window)"}
    assert {form.name for form in trained} - published - linear == set(SPACES)
    assert sorted(SPACES.values()) == names()
    for dataset in TABLES["accuracy"].datasets:
        for model, space in SPACES.items():
            config = Case(dataset, model).training().configure()
            searched = read_space(space, config.model)
            searched.check_base(config)
            # The first trial is the model as the table has it.
            assert searched.values_of(config) is not None


def test_options_that_were_searched_take_the_place_of_a_models_own():
    options = {"model.layers": 3, "model.dropout": 0.1, "training.negatives": 1_024}
    config = Case("amazon-beauty", "eSASRec").training(options, seed=2).configure()
    assert (config.model.layers, config.model.dropout, config.model.norm) == (3, 0.1, "pre")
    assert (config.training.negatives, config.training.loss) == (1_024, "sampled_softmax")
    assert config.training.seed == 2


@pytest.fixture
def logs(tiny_events, tmp_path, monkeypatch):
    """A log, and a table of accuracy with two small models."""
    EventLog.prepare(tiny_events, tmp_path / "logs" / "one")
    preset = Preset(max_len=12, dropout=0.1, tokens_per_batch=512, epochs=1)
    monkeypatch.setitem(paper_tables.PRESETS, "one", preset)
    rows = {
        "dense": Form(DENSE, {"attention": "full", **SMALL}, against=""),
        "recurrent": Form("GRU4Rec", {"backbone": "gru4rec", **SMALL}),
    }
    monkeypatch.setitem(TABLES, "accuracy", PaperTable("Tiny", ("one",), rows))
    monkeypatch.setattr(tuned_study, "SPACES", {DENSE: "sasrec", "GRU4Rec": "gru4rec"})
    monkeypatch.setattr(accuracy_study, "run_jobs", run_jobs_here)
    return tmp_path / "logs"


def test_models_are_tuned_alike_and_tested_with_what_was_best(
    logs, tmp_path, benchmarks, monkeypatch, one_thread
):
    out = tmp_path / "out.jsonl"
    given = ("tuned", logs, "--trials", 2, "--seeds", 0, 1, "--out", out)
    given += ("--runs", tmp_path / "runs")
    assert "2 models to tune, 2 to do" in benchmarks(*given)
    lines = read(out)
    searches = {line["model"]: line for line in lines if line.get("measure") == "tuning"}
    assert set(searches) == {DENSE, "GRU4Rec"}
    for model, told in searches.items():
        assert (told["dataset"], told["trials"], told["seeds"]) == ("one", 2, [0, 1])
        assert sum(told["states"].values()) == 2
        assert told["validation"] >= told["first_validation"] > 0
        measured = [line for line in lines if "metrics" in line and line["model"] == model]
        assert sorted((line["seed"], line["ranking"][:3]) for line in measured) == [
            (seed, ranking) for seed in (0, 1) for ranking in ("ful", "uni")
        ]
        for name, value in told["options"].items():
            # Not the defaults of the data set, but what was found.
            assert {line["options"][name.split(".")[1]] for line in measured} == {value}
        # By the same seed, what was best in the search is what is trained.
        first = next(line for line in measured if line["seed"] == 0)
        assert first["validation"]["ndcg@10"] == pytest.approx(told["validation"], abs=2e-6)
    (test,) = [line for line in lines if "paired" in line]
    assert (test["model"], test["against"], test["seeds"]) == ("GRU4Rec", DENSE, [0, 1])

    size = out.stat().st_size
    monkeypatch.setattr(tuned_study, "measure", lambda *_: pytest.fail("tuned again"))
    assert "2 models to tune, 0 to do" in benchmarks(*given)
    assert out.stat().st_size == size


def test_what_did_not_finish_is_named_and_done_by_the_next_call(logs, tmp_path, monkeypatch):
    original, out = tuned_study.measure, tmp_path / "out.jsonl"
    given = {"trials": 1, "seeds": [0], "out": out, "runs": tmp_path / "runs"}

    def measure(case, *arguments):
        if case.model == "GRU4Rec":
            raise BlossomRecError("stopped")
        return original(case, *arguments)

    monkeypatch.setattr(tuned_study, "measure", measure)
    with pytest.raises(BlossomRecError, match="1 of 2 did not finish: one GRU4Rec, 1 trials"):
        tuned_study.measure_tuned(logs, **given)
    assert not [line for line in read(out) if line["model"] == "GRU4Rec"]
    monkeypatch.setattr(tuned_study, "measure", original)
    tuned_study.measure_tuned(logs, **given)
    assert [line["model"] for line in read(out) if "paired" in line] == ["GRU4Rec"]


def test_a_search_without_a_trial_that_ended_is_named(logs, tmp_path, monkeypatch, capsys):
    nothing = search.TuneResult(config=None, value=None, trials=[], importances={})
    monkeypatch.setattr(search, "tune", lambda *_, **__: nothing)
    with pytest.raises(BlossomRecError, match="1 of 1 did not finish: one GRU4Rec, 1 trials"):
        tuned_study.measure_tuned(
            logs, models=["GRU4Rec"], trials=1, out=tmp_path / "out.jsonl", runs=tmp_path / "runs"
        )
    assert "one GRU4Rec, 1 trials: no trial came to its end" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--datasets", "netflix"], ["'netflix' is not known", "gowalla"]),
        (["--models", "popularity"], ["'popularity' is not known", "GRU4Rec"]),
        (["--trials", "0"], ["trials is 0"]),
        (["--jobs", "0"], ["jobs is 0"]),
        (["--seeds", "-1"], ["training.seed is -1"]),
        (["--epochs", "0"], ["training.epochs is 0"]),
    ],
)
def test_what_is_wrong_is_said_in_a_line(refused, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    refused("tuned", "logs", *arguments, words=words)
    assert not list(tmp_path.iterdir())
