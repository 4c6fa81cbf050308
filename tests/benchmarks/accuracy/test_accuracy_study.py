import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jobs_in_this_process import run_jobs_here

from benchmarks.accuracy import accuracy_study as accuracy
from benchmarks.accuracy.accuracy_study import Case
from blossomrec.config import check
from blossomrec.data.log import EventLog
from blossomrec.errors import BlossomRecError, ConfigError
from blossomrec.measure import evaluate_run
from blossomrec.run.description import read_run_config
from blossomrec.training import trainer

ROOT = Path(__file__).resolve().parents[3]
FIELDS = (
    "dataset model attention seed max_len protocol ranking filter_seen metrics by_length "
    "seconds_per_epoch epochs peak_mib hardware versions commit"
)
TINY = {
    "one": accuracy.Preset(max_len=12, dropout=0.1, tokens_per_batch=512, epochs=1),
    "two": accuracy.Preset(max_len=30, dropout=0.3, tokens_per_batch=512, epochs=2, last_events=2),
}


@pytest.fixture
def tiny(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(accuracy, "DATASETS", TINY)
    monkeypatch.setattr(accuracy, "run_jobs", run_jobs_here)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def logs(tiny_events, repeat_log, tmp_path_factory):
    """Prepared logs by the names of the tiny data sets; the second one has repeats."""
    folder = tmp_path_factory.mktemp("logs")
    EventLog.prepare(tiny_events, folder / "one")
    (folder / "two").symlink_to(repeat_log.folder)
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("dataset", accuracy.DATASETS)
@pytest.mark.parametrize("model", accuracy.MODELS)
def test_every_configuration_is_sound(dataset, model):
    config = Case(dataset, model, seed=3).configure()
    check(config)
    preset = accuracy.DATASETS[dataset]
    assert config.model.max_len == preset.max_len
    assert config.model.dropout == preset.dropout
    assert config.model.attention == ("blossom" if "Blossom" in model else "full")
    assert config.model.backbone == ("bert4rec" if "BERT4Rec" in model else "sasrec")
    assert config.training.seed == 3
    # A model of masked events sees a fifth of the targets in an epoch.
    times = 5 if "BERT4Rec" in model else 1
    assert config.training.epochs == times * preset.epochs
    assert config.training.validate_every == times
    assert config.training.tokens_per_batch == preset.tokens_per_batch
    assert config.evaluation.split == "leave-one-out"
    assert Case(dataset, model, epochs=2).configure().training.epochs == 2
    long = Case(dataset, model, max_len=20_000).configure()
    assert long.model.max_len == long.training.tokens_per_batch == 20_000


@pytest.mark.parametrize(
    "backbone, expected",
    [
        (
            "sasrec",
            [
                ("blossom", 2, "both", "independent", "gated"),
                ("blossom", 2, "both", "independent", "union"),
                ("blossom", 2, "long", "independent", "union"),
                ("blossom", 8, "both", "convex", "gated"),
                ("blossom", 8, "both", "independent", "gated"),
                ("blossom", 8, "both", "independent", "union"),
                ("blossom", 8, "long", "independent", "union"),
                ("full", 2, "both", "independent", "union"),
                ("full", 8, "both", "independent", "union"),
            ],
        ),
        (
            "bert4rec",
            [
                ("blossom", 2, "both", "independent", "gated"),
                ("blossom", 8, "both", "independent", "gated"),
                ("blossom", 8, "both", "independent", "union"),
                ("full", 8, "both", "independent", "union"),
            ],
        ),
    ],
)
def test_the_models_of_a_backbone_differ_in_their_attention_alone(backbone, expected):
    for dataset in accuracy.DATASETS:
        configs = [Case(dataset, name).configure() for name in accuracy.MODELS]
        configs = [config for config in configs if config.model.backbone == backbone]
        names = ("attention", "kv_heads", "paths", "gate", "fusion")
        forms = [tuple(getattr(config.model, name) for name in names) for config in configs]
        assert sorted(forms) == expected
        for config in configs[1:]:
            options = {name: getattr(configs[0].model, name) for name in names}
            model = dataclasses.replace(config.model, **options)
            assert dataclasses.replace(config, model=model) == configs[0]


@pytest.mark.parametrize(
    "arguments, options, words",
    [
        (("netflix", "SASRec"), {}, ["'netflix'", "ml-1m", "gowalla"]),
        (("ml-1m", "GRU"), {}, ["'GRU'", "SASRec, SASRec-2kv, BlossomRec"]),
        (("ml-1m", "SASRec"), {"epochs": 0}, ["training.epochs is 0"]),
        (("ml-1m", "SASRec"), {"seed": -1}, ["training.seed is -1"]),
        (("ml-1m", "SASRec"), {"max_len": 1}, ["model.max_len is 1"]),
    ],
)
def test_what_is_not_known_is_named(arguments, options, words):
    with pytest.raises(ConfigError) as error:
        Case(*arguments, **options).configure()
    assert all(word in str(error.value) for word in words)


def test_all_models_on_all_logs_give_a_line_for_each_ranking(tiny, logs, tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "results" / "accuracy.jsonl"
    models = {"SASRec": "full", "BlossomRec": "blossom"}
    accuracy.measure_all(
        logs, runs=runs, out=out, datasets=list(TINY), models=list(models), seeds=[5]
    )
    lines = read(out)
    assert all(" ".join(line) == FIELDS for line in lines)
    found = {(line["dataset"], line["model"], line["ranking"]): line for line in lines}
    assert set(found) == {
        (dataset, model, ranking)
        for dataset in TINY
        for model in models
        for ranking in ("full", "uni100")
    }
    assert len(lines) == 8
    for (dataset, model, ranking), line in found.items():
        preset = TINY[dataset]
        assert (line["max_len"], line["epochs"]) == (preset.max_len, preset.epochs)
        assert line["seed"] == 5
        assert line["attention"] == models[model]
        assert line["protocol"] == {"one": "leave-one-out", "two": "leave-last-2-out"}[dataset]
        # Items that users meet again are not left out.
        assert line["filter_seen"] == (dataset == "one")
        assert line["seconds_per_epoch"] > 0 and line["peak_mib"] > 0
        run = runs / f"{dataset}-{model}-{preset.max_len}-5"
        measured = evaluate_run(run, logs / dataset, ranking=ranking)
        prefix = measured.protocol.prefix
        assert (prefix == "") == (ranking == "full")
        assert {f"{prefix}ndcg@10", f"{prefix}hr@10"} <= set(line["metrics"])
        assert line["metrics"] == pytest.approx(measured.metrics, abs=1e-6)
        assert len(line["by_length"]) > 1
        for part, piece in zip(line["by_length"], measured.slices, strict=True):
            assert [part[name] for name in ("low", "high", "users")] == [
                getattr(piece, name) for name in ("low", "high", "users")
            ]
            names = {f"{prefix}{name}@10" for name in ("hr", "recall", "ndcg", "mrr")}
            assert names <= set(part["metrics"])
            for name in part["metrics"]:
                assert part["metrics"][name] == pytest.approx(piece.metrics[name], abs=1e-6)
        assert read_run_config(run).config == Case(dataset, model, seed=5).configure()
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 4
    assert any(
        line.startswith("one SASRec seed 5: 1 epochs, ")
        and re.search(r"uni\d+-\d+_ndcg@10 0\.", line)
        for line in shown
    )


def test_lengths_of_histories_are_compared(tiny, logs, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    options = {"datasets": ["one"], "models": ["BlossomRec"], "max_lens": [4, 24]}
    accuracy.measure_all(logs, runs=tmp_path / "runs", out=out, **options)
    lines = [line for line in read(out) if line["ranking"] == "full"]
    assert [line["max_len"] for line in lines] == [4, 24]
    # The same users and targets, in the same bins of history, whatever a model sees of it.
    first, second = ([(part["low"], part["users"]) for part in x["by_length"]] for x in lines)
    assert first == second
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "one-BlossomRec-4-0",
        "one-BlossomRec-24-0",
    }
    assert "one 24 BlossomRec: 1 epochs, " in capsys.readouterr().out


def test_each_seed_is_a_training_of_its_own(tiny, logs, tmp_path, capsys):
    out, seeds = tmp_path / "out.jsonl", [0, 3]
    options = {"datasets": ["one"], "models": ["SASRec"], "seeds": seeds}
    accuracy.measure_all(logs, runs=tmp_path / "runs", out=out, **options)
    lines = [line for line in read(out) if line["ranking"] == "full"]
    assert [line["seed"] for line in lines] == seeds
    assert lines[0]["metrics"] != lines[1]["metrics"]
    shown = capsys.readouterr().out
    assert "one SASRec: 1 epochs" in shown and "one SASRec seed 3: 1 epochs" in shown


def test_training_that_is_done_is_not_done_again(tiny, logs, tmp_path, monkeypatch):
    case = Case("one", "BlossomRec", epochs=1)
    lines, headline = accuracy.measure(case, logs, tmp_path / "runs")
    assert headline.startswith("1 epochs, ")
    monkeypatch.setattr(trainer, "device_steps", lambda *_: pytest.fail("trained again"))
    again, said = accuracy.measure(case, logs, tmp_path / "runs")
    assert said == headline and len(lines) == 2
    assert [line["metrics"] for line in lines] == [line["metrics"] for line in again]


def test_jobs_beside_each_other_take_one_thread_each(tiny, logs, tmp_path):
    torch.set_num_threads(2)
    accuracy.measure(Case("one", "SASRec"), logs, tmp_path / "runs", 2)
    assert torch.get_num_threads() == 1


def test_one_that_fails_does_not_keep_the_others_from_finishing(tiny, logs, tmp_path, capsys):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "one").symlink_to(logs / "one")
    out = tmp_path / "out.jsonl"
    with pytest.raises(BlossomRecError) as error:
        accuracy.measure_all(
            tmp_path / "logs",
            runs=tmp_path / "runs",
            out=out,
            datasets=["two", "one"],
            models=["SASRec"],
        )
    assert str(error.value) == "1 of 2 did not finish: two SASRec"
    assert [line["dataset"] for line in read(out)] == ["one", "one"]
    shown = sorted(capsys.readouterr().out.splitlines())
    assert shown[0].startswith("one SASRec: 1 epochs")
    assert shown[1].startswith("two SASRec: ") and str(tmp_path / "logs" / "two") in shown[1]


def test_failures_come_back_from_real_processes(tmp_path, capfd):
    with pytest.raises(BlossomRecError) as error:
        accuracy.measure_all(
            tmp_path,
            runs=tmp_path,
            out=tmp_path / "out",
            datasets=["ml-100k"],
            models=["SASRec"],
        )
    assert str(error.value) == "1 of 1 did not finish: ml-100k SASRec"
    assert f"{tmp_path / 'ml-100k'} is not a prepared log" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options, words",
    [
        ({"jobs": 0}, "jobs is 0: it must be at least 1"),
        ({"epochs": 0}, "training.epochs is 0"),
        ({"datasets": ["one", "three"]}, "'three' is not known"),
        ({"models": ["GRU"]}, "'GRU' is not known"),
        ({"max_lens": [50, 1]}, "model.max_len is 1"),
        ({"seeds": [0, -1]}, "training.seed is -1"),
    ],
)
def test_nothing_is_begun_where_something_is_wrong(tiny, logs, tmp_path, options, words):
    options = {"datasets": list(TINY)} | options
    with pytest.raises(ConfigError, match=words):
        accuracy.measure_all(logs, runs=tmp_path / "runs", out=tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--datasets", "netflix"], ["'netflix'", "ml-1m"]),
        (["--models", "SASRec", "GRU"], ["'GRU'", "SASRec-2kv, BlossomRec"]),
        (["--jobs", "0"], ["jobs is 0"]),
        (["--epochs", "0"], ["training.epochs is 0"]),
        (["--seeds", "1.5"], ["--seeds is 1.5", "whole number"]),
    ],
)
def test_what_is_wrong_is_said_in_a_line(refused, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    refused("accuracy", "logs", *arguments, words=words)
    assert list(tmp_path.iterdir()) == []


def test_the_study_needs_no_polars():
    program = "import sys; sys.modules['polars'] = None; import benchmarks.accuracy.accuracy_study"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
