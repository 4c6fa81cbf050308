"""The tables of the paper: what is planned, skipped, refused, measured and tested."""

import dataclasses
import json

import pytest
import torch
from jobs_in_this_process import run_jobs_here

from benchmarks.accuracy import accuracy_study, efficiency, paper_tables, reproduce
from benchmarks.accuracy.accuracy_study import Preset
from benchmarks.accuracy.paper_tables import BLOSSOM, DENSE, TABLES, Form, PaperTable, blossom
from benchmarks.accuracy.paper_training import Training, measured
from benchmarks.speed import bench_encoder
from blossomrec.config import ModelConfig
from blossomrec.data.log import EventLog
from blossomrec.errors import BlossomRecError, ConfigError
from blossomrec.models import ATTENTIONS
from blossomrec.training import trainer

FIELDS = (
    "dataset model attention fusion kv_heads repeats seed max_len protocol ranking metrics "
    "by_length validation epochs seconds_per_epoch peak_mib hardware versions commit"
)
SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "inner_size": 16}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """A table of one data set, and a process that forgets what was registered."""
    threads = torch.get_num_threads()
    preset = Preset(max_len=12, dropout=0.1, tokens_per_batch=512, epochs=1)
    monkeypatch.setitem(paper_tables.PRESETS, "one", preset)
    rows = {
        "dense": Form(DENSE, {"attention": "full", **SMALL}, against=""),
        "at random": Form("random", {"attention": paper_tables.AT_RANDOM, **SMALL}),
        "popularity": Form("popularity", baseline="popularity"),
    }
    monkeypatch.setitem(TABLES, "tiny", PaperTable("Tiny", ("one",), rows))
    monkeypatch.setattr(accuracy_study, "run_jobs", run_jobs_here)
    monkeypatch.setattr(ATTENTIONS, "_registered", {})
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def logs(tiny_events, tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    EventLog.prepare(tiny_events, folder / "one")
    return folder


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", list(TABLES))
def test_every_training_of_a_table_is_sound(name):
    table = TABLES[name]
    trainings = [Training(*cell) for cell in table.cells()]
    assert {one.dataset for one in trainings} == set(table.datasets)
    places = [one.run(reproduce.RESULTS) for one in trainings]
    assert len(set(places)) == len(places)
    names = {(one.dataset, one.max_len, one.form.name) for one in trainings}
    for one in trainings:
        config = one.configure()
        assert config.model.max_len == one.max_len
        assert config.model.repeats == ("on" if "own items" in one.form.name else "off")
        assert not one.form.against or (one.dataset, one.max_len, one.form.against) in names
    assert any(one.form.name == BLOSSOM for one in trainings)


def test_forms_of_one_name_are_one_model():
    found = {}
    for table in (TABLES[name] for name in ("accuracy", "ablation", "parameters", "lengths")):
        for form in table.forms:
            assert found.setdefault(form.name, form) == form
    assert blossom(window=ModelConfig().window, kv_heads=ModelConfig().heads) == blossom()
    assert blossom(top_n=3).name == "BlossomRec (top_n 3)"


def test_what_it_costs_is_said_before_anything_is_done(logs, tmp_path, capsys, monkeypatch):
    line = {"dataset": "one", "max_len": 12, "model": "SASRec", "attention": "full"}
    line |= {"epochs": 100, "seconds_per_epoch": 36.0, "hardware": "a GPU; 2 cores"}
    (tmp_path / "accuracy.jsonl").write_text(json.dumps(line) + '\n{"half')
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    out = tmp_path / "out.jsonl"
    given = {"logs": logs, "out": out, "runs": tmp_path / "runs", "dry_run": True}
    # No more epochs than the preset has, times three seeds.
    reproduce.reproduce("tiny", **given)
    assert capsys.readouterr().out.strip() == (
        f"tiny: 7 trainings, 0 are in {out}: 7 to do; 4 of them take 2 minutes one after the other "
        "(epochs x seconds per epoch, on a GPU); the time of 3 is unknown: random"
    )
    reproduce.reproduce("tiny", epochs=200, **given)
    assert "4 of them take 3.0 hours one after" in capsys.readouterr().out
    reproduce.reproduce("tiny", models=["random"], **given)
    assert "tiny: 3 trainings" in capsys.readouterr().out
    assert not out.exists() and not (tmp_path / "runs").exists()


def test_a_table_is_measured_once(logs, tmp_path, capsys, monkeypatch):
    out, runs = tmp_path / "out.jsonl", tmp_path / "runs"
    given = {"logs": logs, "out": out, "runs": runs}
    reproduce.reproduce("tiny", seeds=[3, 4], **given)
    lines = [line for line in read(out) if "metrics" in line]
    found = {(line["model"], line["seed"], line["ranking"][:3]): line for line in lines}
    models = [(DENSE, 3), (DENSE, 4), ("random", 3), ("random", 4), ("popularity", 0)]
    assert len(lines) == 10
    assert set(found) == {(*model, ranking) for model in models for ranking in ("ful", "uni")}
    for line in lines:
        assert set(FIELDS.split()) - set(line) <= {"validation"}
        assert (line["validation"] if line["epochs"] else line["seed"] == 0) is not None
    random = found["random", 3, "ful"]
    assert (random["attention"], random["fusion"], random["kv_heads"]) == (
        paper_tables.AT_RANDOM,
        "union",
        2,
    )
    assert found[DENSE, 3, "ful"]["fusion"] is None and not random["repeats"]
    tests = {line["model"]: line for line in read(out) if "paired" in line}
    assert set(tests) == {"random", "popularity"}
    for name, seeds in (("random", (3, 4)), ("popularity", (0, 0))):
        values = [
            [found[model, seed, "ful"]["metrics"]["ndcg@10"] for seed in of]
            for model, of in ((name, seeds), (DENSE, (3, 4)))
        ]
        expected = (sum(values[0]) - sum(values[1])) / 2
        assert tests[name]["paired"]["difference"] == pytest.approx(expected, abs=2e-6)
        assert (tests[name]["against"], tests[name]["seeds"]) == (DENSE, [3, 4])

    size, _ = out.stat().st_size, capsys.readouterr()
    monkeypatch.setattr(trainer, "device_steps", lambda *_: pytest.fail("trained again"))
    reproduce.reproduce("tiny", seeds=[3, 4], **given)
    assert "5 trainings, 5 are in" in capsys.readouterr().out and out.stat().st_size == size
    # Where lines are lost, what was trained is only evaluated.
    out.write_text("".join(json.dumps(line) + "\n" for line in lines[2:]))
    reproduce.reproduce("tiny", seeds=[3, 4], **given)
    again = [line for line in read(out) if "metrics" in line]
    assert len(again) == 10 and again[-1]["metrics"] == lines[1]["metrics"]


def test_a_model_meets_the_others_on_the_same_data():
    forms = [Form(DENSE, against=""), Form("mine"), Form("other")]
    trainings = [Training("one", form, length) for length in (12, 50) for form in forms]
    trainings.append(Training("one", Form("counts", baseline="popularity"), 50))
    pairs = reproduce.pairs_to_test(trainings, [("mine", "other"), ("mine", "counts")])
    assert [(a.form.name, a.max_len, b.form.name, b.max_len) for a, b in pairs] == [
        ("mine", 12, DENSE, 12),
        ("mine", 12, "other", 12),
        # What is counted is counted in whole histories.
        ("mine", 12, "counts", 50),
        ("other", 12, DENSE, 12),
        ("mine", 50, DENSE, 50),
        ("mine", 50, "other", 50),
        ("mine", 50, "counts", 50),
        ("other", 50, DENSE, 50),
        ("counts", 50, DENSE, 50),
    ]


def test_a_line_is_of_the_same_options_alone():
    training = Training("one", TABLES["tiny"].rows["dense"], 12, 1)
    lines = [
        {"dataset": "one", "seed": 1, "options": training.options, "ranking": each, "metrics": {}}
        for each in ("full", "uni23-99")
    ]
    assert measured(lines, training)
    assert not measured(lines[:1], training)
    assert not measured(lines, dataclasses.replace(training, seed=0))
    assert not measured(lines, dataclasses.replace(training, epochs=2))
    wider = dataclasses.replace(training.form, model={"attention": "full"})
    assert not measured(lines, dataclasses.replace(training, form=wider))
    # An option that came later was at its default.
    del lines[0]["options"]["state_size"]
    assert measured(lines, training)
    other = dataclasses.replace(training.form, model=training.form.model | {"state_size": 8})
    assert not measured(lines, dataclasses.replace(training, form=other))


def test_one_that_fails_does_not_keep_the_others_from_their_tests(logs, tmp_path, monkeypatch):
    rows = TABLES["tiny"].rows | {"broken": Form("ease", baseline="ease")}
    monkeypatch.setitem(TABLES, "tiny", PaperTable("Tiny", ("one",), rows))
    original = reproduce.measure

    def measure(training, *arguments):
        if training.form.name == "ease":
            raise BlossomRecError("too large")
        return original(training, *arguments)

    monkeypatch.setattr(reproduce, "measure", measure)
    out = tmp_path / "out.jsonl"
    with pytest.raises(BlossomRecError, match="1 of 4 did not finish: one 12 ease seed 0"):
        reproduce.reproduce("tiny", logs=logs, out=out, runs=tmp_path / "runs", seeds=[0])
    assert {line["model"] for line in read(out) if "paired" in line} == {"random", "popularity"}


def test_efficiency_leaves_out_what_was_measured_here(tmp_path, monkeypatch):
    asked, out = [], tmp_path / "out.jsonl"
    monkeypatch.setattr(efficiency, "resolve_device", lambda device: "cpu")
    monkeypatch.setattr(bench_encoder, "LENGTHS", {"cpu": (32, 64)})
    monkeypatch.setattr(efficiency, "run_cases", lambda *given: asked.append(given) or [])
    here = {"bench": "encoder", "hardware": efficiency.hardware("cpu")}
    here["commit"] = efficiency.commit()
    cases = bench_encoder.cases(efficiency.wanted("cpu"))
    names = bench_encoder.KEY
    lines = [here | dict(zip(names, case.key, strict=True)) for case in cases]
    # One case was not measured, one elsewhere, and one of other code.
    del lines[1]
    lines[3] |= {"hardware": "elsewhere"}
    lines[5] |= {"commit": "another"}
    out.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"bench": "enc')
    assert reproduce.reproduce("efficiency", out=out, dry_run=True) and not asked
    assert reproduce.reproduce("efficiency", out=out)
    ((bench, to_do, options, file),) = asked
    assert (bench, file) == (bench_encoder, out)
    assert to_do == [cases[1], cases[4], cases[6]]
    assert set(options.impls) == {case.impl for case in to_do}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["figure-3", "--logs", "logs"], ["'figure-3' is not known", "accuracy, ablation"]),
        (["accuracy"], ["accuracy needs --logs"]),
        (["accuracy", "--logs", "logs", "--datasets", "netflix"], ["'netflix'", "gowalla"]),
        (["lengths", "--logs", "logs", "--datasets", "gowalla"], ["'gowalla'", "unix-commands"]),
        (["ablation", "--logs", "logs", "--jobs", "0"], ["jobs is 0"]),
        (["ablation", "--logs", "logs", "--seeds", "-1"], ["training.seed is -1"]),
        (["ablation", "--logs", "logs", "--epochs", "0"], ["training.epochs is 0"]),
        (["ablation", "--logs", "logs", "--models", "SASRecs"], ["'SASRecs' is not known"]),
        (["efficiency", "--seeds", "1"], ["--seeds is for tables of trainings"]),
        (["efficiency", "--seconds", "9"], ["--seconds is for tables of trainings"]),
    ],
)
def test_what_is_wrong_is_said_in_a_line(refused, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    refused("reproduce", *arguments, words=words)
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_is_unknown_is_a_wrong_configuration():
    with pytest.raises(ConfigError, match="'none' is not known: choose from accuracy"):
        reproduce.reproduce("none")
