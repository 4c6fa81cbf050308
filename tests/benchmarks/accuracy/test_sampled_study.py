"""Exact and sampled softmax for equal time: what is configured, trained and written down."""

import json

import pytest
from jobs_in_this_process import run_jobs_here

from benchmarks.accuracy import accuracy_study, sampled_study
from benchmarks.accuracy.sampled_study import Case
from blossomrec.config import check
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError

FIELDS = {"form", "minutes", "items", "steps", "negatives", "table_optimizer", "metrics", "seed"}


@pytest.mark.parametrize("dataset", sampled_study.PRESETS)
@pytest.mark.parametrize("form", sampled_study.FORMS)
def test_every_configuration_is_sound_and_ends_by_time(dataset, form):
    config = Case(dataset, form, 3.0, seed=2).configure()
    check(config)
    training = config.training
    assert (training.minutes, training.seed) == (3.0, 2)
    assert min(training.epochs, training.validate_every) > 100_000
    assert training.loss == ("cross_entropy" if form == "exact" else "sampled_softmax")
    if form.startswith("sampled-"):
        assert str(training.negatives) == form.split("-")[1]
    assert config.model.content == "off"


@pytest.mark.parametrize(
    "case, words",
    [
        (Case("none", "exact", 1.0), "no data set 'none': choose from gowalla, simulated"),
        (Case("gowalla", "best", 1.0), "no form 'best': choose from exact"),
        (Case("gowalla", "exact", 1.0, model="Best"), "no model 'Best'"),
        (Case("gowalla", "exact", 0.0), "minutes is 0: a training of this study ends by time"),
    ],
)
def test_what_there_is_not_is_refused(case, words):
    with pytest.raises(ConfigError, match=words):
        case.configure()


def test_forms_are_trained_for_their_time_on_a_log_that_is_made(
    tmp_path, monkeypatch, benchmarks, one_thread
):
    small = accuracy_study.Preset(max_len=12, dropout=0.1, tokens_per_batch=512)
    monkeypatch.setattr(sampled_study, "PRESETS", {"simulated": small})
    monkeypatch.setattr(sampled_study, "EVENTS_PER_USER", 20)
    monkeypatch.setattr(accuracy_study, "run_jobs", run_jobs_here)
    out, forms = tmp_path / "out.jsonl", ("exact", "sampled-1024", "sampled-4096-adagrad")
    sizes = ("--users", 60, "--items", 400, "--minutes", 0.01)
    shown = benchmarks(
        "sampled", tmp_path, "--forms", *forms, *sizes, "--out", out, "--runs", tmp_path / "runs"
    )
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["form"] for line in lines] == list(forms)
    log = EventLog.open(tmp_path / "simulated")
    for line in lines:
        assert line.keys() >= FIELDS
        assert line["steps"] > 0 and line["items"] == log.num_items
        assert line["dataset"] == "simulated" and line["minutes"] == 0.01
        assert f"simulated-BlossomRec-{line['form']}-0.01min-0: " in shown
