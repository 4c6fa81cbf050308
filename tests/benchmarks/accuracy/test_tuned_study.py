"""Models tuned alike: what is searched, trained with what was best, tested and not done again."""

import json

import pytest
from jobs_in_this_process import run_jobs_here

from benchmarks.accuracy import accuracy_study, paper_tables, tuned_study
from benchmarks.accuracy.accuracy_study import Preset
from benchmarks.accuracy.paper_tables import DENSE, TABLES, Form, PaperTable
from benchmarks.accuracy.tuned_study import SPACES, Trial, training_with
from blossomrec.data.log import EventLog
from blossomrec.errors import BlossomRecError
from blossomrec.tuning import tune
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
            config = training_with({}, dataset, model).configure()
            searched = read_space(space, config.model)
            searched.check_base(config)
            # The first trial is the model as the table has it.
            own = Trial(dataset, model, 0).options
            assert own.keys() == searched.searched.keys()
            assert training_with(own, dataset, model).configure() == config


def test_trials_are_those_that_a_search_begins_with(tiny_events, tmp_path):
    log = EventLog.prepare(tiny_events, tmp_path / "log")
    config = training_with({"model.hidden_size": 16}, "amazon-beauty", "SASRec", epochs=1)
    found = tune(log, tmp_path / "search", config.configure(), space="sasrec", trials=3)
    drawn = [Trial("amazon-beauty", "SASRec", number).options for number in range(3)]
    assert [trial["options"] for trial in found.trials] == drawn
    assert drawn[1] != drawn[2]


def test_options_that_were_searched_take_the_place_of_a_models_own():
    options = {"model.layers": 3, "model.dropout": 0.1, "training.negatives": 1_024}
    config = training_with(options, "amazon-beauty", "eSASRec", seed=2).configure()
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
    told = benchmarks(*given)
    assert "4 trials, 4 to do" in told and "4 trainings with the best options, 4 to do" in told
    lines = read(out)
    trials = [line for line in lines if line.get("measure") == "trial"]
    # All models have one trial before any has two.
    assert [(line["model"], line["trial"]) for line in trials] == [
        *((DENSE, 0), ("GRU4Rec", 0), (DENSE, 1), ("GRU4Rec", 1))
    ]
    for model in (DENSE, "GRU4Rec"):
        best = max(
            (line for line in trials if line["model"] == model), key=lambda each: each["validation"]
        )
        measured = [line for line in lines if "metrics" in line and line["model"] == model]
        assert sorted((line["seed"], line["ranking"][:3]) for line in measured) == [
            (seed, ranking) for seed in (0, 1) for ranking in ("ful", "uni")
        ]
        for name, value in best["options"].items():
            # Not the defaults of the data set, but what was found.
            assert {line["options"][name.split(".")[1]] for line in measured} == {value}
        # By the same seed, what was best in the search is what is trained.
        first = next(line for line in measured if line["seed"] == 0)
        assert first["validation"]["ndcg@10"] == pytest.approx(best["validation"], abs=2e-6)
    (test,) = [line for line in lines if "paired" in line]
    assert (test["model"], test["against"], test["seeds"]) == ("GRU4Rec", DENSE, [0, 1])

    size = out.stat().st_size
    for name in ("try_options", "measure_training"):
        monkeypatch.setattr(tuned_study, name, lambda *_: pytest.fail("done again"))
    told = benchmarks(*given)
    assert "4 trials, 0 to do" in told and "4 trainings with the best options, 0 to do" in told
    assert out.stat().st_size == size


def test_what_did_not_finish_is_named_and_done_by_the_next_call(logs, tmp_path, monkeypatch):
    original, out = tuned_study.try_options, tmp_path / "out.jsonl"
    given = {"trials": 2, "seeds": [0], "out": out, "runs": tmp_path / "runs"}

    def try_options(trial, *arguments):
        if (trial.model, trial.number) == ("GRU4Rec", 1):
            raise BlossomRecError("stopped")
        return original(trial, *arguments)

    monkeypatch.setattr(tuned_study, "try_options", try_options)
    with pytest.raises(BlossomRecError, match="1 of 4 did not finish: one GRU4Rec trial 1"):
        tuned_study.measure_tuned(logs, **given)
    # The others are trained with what was best; it is not known of this one yet.
    lines = read(out)
    assert {line["model"] for line in lines if "metrics" in line} == {DENSE}
    assert not [line for line in lines if "paired" in line]
    monkeypatch.setattr(tuned_study, "try_options", original)
    tuned_study.measure_tuned(logs, **given)
    assert [line["model"] for line in read(out) if "paired" in line] == ["GRU4Rec"]


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
