"""Trainings that compare selectors: each job of the study runs and its lines hold what they say."""

import dataclasses
import json

import pytest
import torch

from benchmarks.selector import recall_measures, selector_jobs
from benchmarks.selector.selector_candidates import CANDIDATES
from benchmarks.selector.selector_jobs import LogJob, RecallJob, accuracy, difference
from benchmarks.selector.selector_study import drift, study_logs, study_recall
from blossomrec.evaluation.evaluation import load_evaluation
from blossomrec.report.inspect.inspection import inspect_run
from small_options import MODEL, TRAINING

CPU = torch.device("cpu")
TINY_TASK = {
    "length": 128,
    "items": 64,
    "cue_items": 16,
    "tokens_per_batch": 256,
    "first_steps": 1,
    "stage_steps": 1,
    "last_steps": 2,
}
SMALL = {"hidden_size": 32, "heads": 8, "inner_size": 16}


def tiny(job: RecallJob) -> RecallJob:
    training = dataclasses.replace(job.training, **TINY_TASK)
    # Kernels for a GPU do not run here.
    here = {name: "torch" for name in job.model if name == "attention_impl"}
    return dataclasses.replace(job, model=job.model | SMALL | here, training=training)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return [*drift(), *study_recall(), *study_logs(folder / "logs", folder / "runs")]


def test_every_training_on_recall_of_the_study_runs(jobs, monkeypatch):
    monkeypatch.setattr(recall_measures, "QUERIES", 16)
    seen = set()
    for job in jobs:
        if not isinstance(job, RecallJob):
            continue
        same = (job.candidate, str(job.model), job.training.control, job.training.early_top_n)
        if same in seen:
            continue
        seen.add(same)
        small = tiny(job)
        (line,) = small.run(CPU, 1e9)
        json.dumps(line, allow_nan=False)
        assert line["candidate"] == job.candidate and line["finished"]
        kind = "recall-control" if job.training.control else "recall"
        assert line["task"] == (job.task or kind)
        assert (line["length"], line["steps"]) == (128, 3)
        assert line["options"] == small.model
        assert line["training"]["tokens_per_batch"] == 256
        assert [point[:2] for point in line["course"]] == [[1, 64], [3, 128]]
        assert (line["recall_at_n"] is None) == (job.candidate == "full")
        assert list(line["gradient_norms"]) == ["64", "128"]


def test_no_job_of_the_study_stands_there_twice(jobs):
    assert len({str((job, getattr(job, "training", None))) for job in jobs}) == len(jobs)
    assert {job.seed for job in jobs if isinstance(job, LogJob)} == {0, 1, 2}


def test_a_training_out_of_time_is_measured(jobs):
    (line,) = tiny(jobs[0]).run(CPU, seconds=20.0)
    assert (line["finished"], line["steps"], line["length"]) == (False, 0, 64)


@pytest.fixture(scope="module")
def compared(tiny_log, tmp_path_factory):
    """Lines of three candidates on a log, and the folder of their runs."""
    runs = tmp_path_factory.mktemp("compared")
    patch = pytest.MonkeyPatch()
    patch.setattr(selector_jobs, "LONG_HISTORY", 30)
    patch.setattr(selector_jobs, "MAX_LEN", 40)
    options = {name: value for name, value in MODEL.items() if name != "max_len"}
    lines = []
    for name in ("full", "mlp", "mean"):
        job = LogJob(name, tiny_log.folder.name, tiny_log.folder.parent, runs, 3, options, TRAINING)
        lines.append(job.run(CPU, 1e9))
    patch.undo()
    return lines, runs


def test_a_log_is_compared_as_soon_as_there_is_something_to_compare(compared):
    names = [[line["candidate"] for line in lines] for lines in compared[0]]
    assert names == [["full"], ["mlp", "mlp - full"], ["mean", "mean - full", "mean - mlp"]]
    for lines in compared[0]:
        for line in lines:
            json.dumps(line, allow_nan=False)
            assert (line["task"], line["seed"]) == ("log", 3)


def test_long_histories_are_measured_apart(compared, tiny_log, monkeypatch):
    monkeypatch.setattr(selector_jobs, "LONG_HISTORY", 30)
    lines, runs = compared
    (run,) = (each for each in runs.iterdir() if each.is_dir() and "-mlp-3" in each.name)
    evaluation = load_evaluation(runs / f"{run.name}.json")
    # A history of 1, 2, ..., 60 events, the last of which is the target.
    chosen = evaluation.user_lengths >= 30
    assert chosen.sum() == 30
    metrics = lines[1][0]["metrics"]
    assert metrics == metrics | {
        name: value for name, value in accuracy(evaluation).items() if name != "long_histories"
    }
    long = metrics["long_histories"]
    assert (long["users"], long["min_events"]) == (30, 30)
    expected = evaluation.per_user["ndcg@10"][chosen].mean()
    assert long["ndcg@10"] == pytest.approx(expected, abs=1e-6)
    found = inspect_run(run, tiny_log.folder, min_events=30)
    assert found.choice.choosing_histories == found.choice.sampled_histories == 30
    assert long["ratio"][0] == pytest.approx(found.ratio.value, abs=1e-4)
    whole = inspect_run(run, tiny_log.folder)
    assert whole.choice.choosing_histories > 30 and whole.choice.events == found.choice.events


def test_a_difference_is_that_of_the_same_users(compared, monkeypatch):
    monkeypatch.setattr(selector_jobs, "LONG_HISTORY", 30)
    lines, runs = compared
    named = {line["candidate"]: line["metrics"] for each in lines for line in each}
    value = named["mean - mlp"]["ndcg@10"][0]
    assert value == pytest.approx(named["mean"]["ndcg@10"] - named["mlp"]["ndcg@10"], abs=2e-6)
    long = named["mean - mlp"]["long_histories"]
    apart = [named[name]["long_histories"]["ndcg@10"] for name in ("mean", "mlp")]
    assert long["users"] == 30
    assert long["ndcg@10"][0] == pytest.approx(apart[0] - apart[1], abs=2e-6)
    one = next(load_evaluation(path) for path in runs.glob("*-mlp-3*.json"))
    assert difference(one, one)["long_histories"]["ndcg@10"] == [0, 0, 0]


def test_candidates_on_logs_are_a_choice_of_options(jobs):
    names = {job.candidate for job in jobs if isinstance(job, LogJob)}
    assert names == {"mlp", "mean", "full"}
    assert all(CANDIDATES[name].attention is None for name in names)
