import functools
import json
import os
import re
import shlex
import shutil

import polars as pl
import pytest
import torch

from blossomrec.cli import main
from blossomrec.data.log import EventLog
from blossomrec.files import locked
from blossomrec.recommender import BlossomRec
from blossomrec.training import trainer
from command_line import content, prepare_and_train, refuse
from small_options import small_flags

pytestmark = pytest.mark.usefixtures("one_thread", "wide_terminal")


@pytest.fixture
def refused(capsys):
    return functools.partial(refuse, capsys)


@pytest.fixture(scope="module")
def place(tiny_events, tmp_path_factory):
    """A folder with events, their prepared log, and a run that was trained on it. Read only."""
    return prepare_and_train(tiny_events, tmp_path_factory.mktemp("place"))


def write(tmp_path, text):
    path = tmp_path / "events.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text, words",
    [
        pytest.param(
            "user_id,itme_id,timestamp\n1,2,3\n", ["'item_id'", "'itme_id'?"], id="missing column"
        ),
        pytest.param(
            "user_id,item_id,timestamp\n1,2,3\n2,,4\n",
            ["column 'item_id', row 2: None", "missing"],
            id="null id",
        ),
        pytest.param(
            "user_id,item_id,timestamp\nu,2,3\n,3,4\n",
            ["column 'user_id', row 2: None", "missing"],
            id="null user",
        ),
        pytest.param(
            "user_id,item_id,timestamp\n1,2,2024-01-31\n2,3,soon\n",
            ["column 'timestamp', row 2: 'soon'", "ISO 8601"],
            id="unparsable time",
        ),
        pytest.param(
            "user_id,item_id,timestamp\n1,2,1700000000\n2,3,2024-01-31\n",
            ["column 'timestamp', row 2: '2024-01-31'", "row 1 has a number"],
            id="mixed times",
        ),
        pytest.param("", ["is empty"], id="empty file"),
        pytest.param("user_id,item_id,timestamp\n", ["no events"], id="no rows"),
        pytest.param(
            "user_id,item_id,timestamp\n7,1,1\n7,2,2\n7,3,3\n",
            ["single user, 7", "at least 2"],
            id="single user",
        ),
    ],
)
def test_bad_events_are_refused_and_nothing_is_written(refused, tmp_path, text, words):
    path = write(tmp_path, text)
    refused("prepare", path, tmp_path / "log", words=[path, *words])
    assert list(tmp_path.iterdir()) == [path]


def test_a_truncated_parquet_file_is_refused(refused, place, tmp_path):
    path = tmp_path / "events.parquet"
    whole = (place / "events.parquet").read_bytes()
    for size in (len(whole) // 2, len(whole) - 3, 5):
        path.write_bytes(whole[:size])
        refused("prepare", path, tmp_path / "log", words=[path, "truncated"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_preparation_leaves_the_log_that_was_there(refused, place, tmp_path):
    log = EventLog.prepare(place / "events.parquet", tmp_path / "log")
    before = content(log.folder)
    path = write(tmp_path, "user_id,item_id,timestamp\n1,2,x\n")
    refused("prepare", path, log.folder, words=["'x'"])
    refused("prepare", place / "events.parquet", tmp_path, words=[tmp_path, "new folder"])
    options = ["--min-user-events", 0]
    refused("prepare", place / "events.parquet", log.folder, *options, words=["min_user_events"])
    assert content(log.folder) == before


@pytest.mark.parametrize(
    "options, words",
    [
        (["--model.max-len", "1"], ["model.max_len is 1", "at least 2"]),
        (["--model.max-len", "long"], ["--model.max-len", '"long"']),
        (["--model.max-len", "20.5"], ["--model.max-len is 20.5: a whole number is needed"]),
        (["--evaluation.ks", "2.5"], ["--evaluation.ks is 2.5: a whole number is needed"]),
        (["--model.kv-heads", "3"], ["model.kv_heads is 3", "heads, 8"]),
        (["--model.backbone", "lstm"], ["--model.backbone", '"lstm"', "gru4rec"]),
        (["--training.learning-rate", "nan"], ["training.learning_rate is nan"]),
        (["--evaluation.ks", "0"], ["evaluation.ks is (0,)", "at least 1"]),
        (["--training.bogus", "1"], ["--training.bogus"]),
        (["--resume", "perhaps"], ["--resume", '"perhaps"']),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(
    refused, place, tmp_path, options, words
):
    shown, _ = refused("train", place / "log", tmp_path / "run", *options, words=words)
    assert shown == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text, words",
    [
        ("modle: {max_len: 3}", ["unknown option modle"]),
        ("model: {max_lne: 3}", ["unknown option model.max_lne"]),
        ("training: {epochs: many}", ["training.epochs is 'many'"]),
        ("model: {max_len: 1}", ["model.max_len is 1"]),
        ("model: [1, 2", ["cannot be read"]),
        ("model: {max_len: 3, max_len: 4}", ["max_len stands twice"]),
    ],
)
def test_a_wrong_configuration_file_is_named(refused, place, tmp_path, text, words):
    path = tmp_path / "options.yaml"
    path.write_text(text)
    arguments = ["train", place / "log", tmp_path / "run", "--config"]
    refused(*arguments, path, words=[path, *words])
    refused(*arguments, tmp_path / "none.yaml", words=[tmp_path / "none.yaml"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_loss_that_is_not_finite_stops_training(refused, cli, place, tmp_path):
    log, run = place / "log", tmp_path / "run"
    wild = small_flags(learning_rate=1e30, clip_norm=0, warmup_steps=0)
    words = ["epoch 1, step", "learning rate 1e+30", "training stopped", "no checkpoint was saved"]
    _, shown = refused("train", log, run, "--quiet", *wild, words=words)
    assert re.search(r"(loss|gradient norm|\S+\.weight|\S+\.bias) is (nan|inf|not finite)", shown)
    assert not (run / "model.safetensors").exists()
    assert not list(run.glob("checkpoints/step-*"))
    refused("evaluate", run, words=[run / "model.safetensors", "no trained weights yet"])
    # With another learning rate the folder is as good as new.
    cli("train", log, run, "--quiet", *small_flags())
    assert "ndcg@10" in cli("evaluate", run)


def test_the_last_good_checkpoint_stays_when_a_loss_is_not_finite(
    refused, place, tmp_path, monkeypatch
):
    original = trainer.device_steps

    def poisoned(*arguments):
        for number, step in enumerate(original(*arguments)):
            if epochs[0] == 3 and number == 0:
                with torch.no_grad():
                    models[0].item_embeddings.weight.fill_(torch.nan)
            yield step
        epochs[0] += 1

    build, models, epochs = trainer.Trainer.__init__, [], [1]

    def remember(self, parts, *arguments):
        models.append(parts.model)
        build(self, parts, *arguments)

    monkeypatch.setattr(trainer.Trainer, "__init__", remember)
    monkeypatch.setattr(trainer, "device_steps", poisoned)
    # So quick an epoch would not be worth a checkpoint.
    monkeypatch.setattr(trainer.Pace, "due", lambda pace: True)
    run = tmp_path / "run"
    flags = small_flags(epochs=5)
    _, shown = refused("train", place / "log", run, "--quiet", *flags, words=["nan", "epoch 3"])
    kept = max(run.glob("checkpoints/step-*"))
    assert f"the last good checkpoint is {kept}" in shown
    state = json.loads((kept / "state.json").read_text())["content"]["state"]["training"]
    assert state["epoch"] == 2
    best = BlossomRec.from_pretrained(run).model
    assert all(value.isfinite().all() for value in best.state_dict().values())


def test_an_evaluation_that_cannot_be_kept_is_shown(refused, cli, place, tmp_path):
    (tmp_path / "evaluations").write_text("no folder")
    arguments = ["evaluate", place / "run", "--out", tmp_path]
    shown, _ = refused(*arguments, words=["is not kept, as it cannot be written", tmp_path])
    assert shown == cli("evaluate", place / "run")


def test_a_log_prepared_again_is_refused_by_what_needs_it(refused, cli, tiny_events, tmp_path):
    prepare_and_train(tiny_events, tmp_path)
    log, run = tmp_path / "log", tmp_path / "run"
    tiny_events.with_columns(pl.col("timestamp") * 2).write_parquet(tmp_path / "new.parquet")
    cli("prepare", tmp_path / "new.parquet", log)
    refused("evaluate", run, words=[log, "has changed since", "(times)", f"--log {log}"])
    flags = ["--resume", "auto", "--quiet", *small_flags(epochs=3)]
    refused("train", log, run, *flags, words=["trained on other data (times)"])
    assert "50010" in cli("recommend", run, "--history", "50003", "--k", 80)
    assert "50010" in cli("recommend", run, "--user", 1001, "--k", 80, "--no-filter-viewed")


def test_a_run_of_another_vocabulary_is_refused(refused, cli, place, repeat_log):
    run, other = place / "run", repeat_log.folder
    before = content(run)
    words = ["another vocabulary", run, other]
    refused("train", other, run, *small_flags(epochs=3), "--resume", "auto", words=words)
    refused("evaluate", run, "--log", other, words=words)
    assert content(run) == before
    # Recommending goes by external ids.
    options = ["--log", other, "--k", 3, "--json"]
    found = json.loads(cli("recommend", run, "--user", "1001", *options))
    assert [row["rank"] for row in found] == [1, 2, 3]


def test_a_used_folder_is_refused_unless_training_is_to_go_on(refused, cli, place, tmp_path):
    run = place / "run"
    before = content(run / "checkpoints")
    flags = ["--quiet", *small_flags(epochs=3)]
    words = [run, "already holds checkpoints", "resume"]
    refused("train", place / "log", run, *flags, words=words)
    words = ["model.dropout is 0.4", "with 0.2", run]
    for others in (flags, []):
        others = [*others, "--resume", "auto", "--model.dropout", "0.4"]
        refused("train", place / "log", run, *others, words=words)
    file = tmp_path / "options.toml"
    file.write_text("model = {dropout = 0.4}")
    refused("train", place / "log", run, "--resume", "auto", "--config", file, words=words)
    cli("train", place / "log", run, *flags, "--resume", "auto")
    assert content(run / "checkpoints") == before


def test_a_run_is_not_written_into_a_log(refused, place, tmp_path):
    log = EventLog.prepare(place / "events.parquet", tmp_path / "log")
    before = content(log.folder)
    refused("train", log.folder, log.folder, *small_flags(), words=["log is a prepared log"])
    assert content(log.folder) == before


def test_a_runs_evaluations_are_not_replaced_by_those_of_another_model(refused, place):
    before = content(place / "run")
    options = ["--log", place / "log", "--out", place / "run"]
    refused("evaluate", "popularity", *options, words=["another model", place / "run"])
    assert content(place / "run") == before


def test_a_run_whose_options_are_damaged_is_named(refused, place, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    (run / "config.json").write_text("{")
    words = [run / "config.json", "is damaged"]
    refused("train", place / "log", run, "--resume", "auto", words=words)


def test_a_second_training_in_a_run_folder_is_refused(refused, place, tmp_path):
    run = tmp_path / "run"
    arguments = ["train", place / "log", run, "--quiet", *small_flags()]
    with locked(run):
        before = content(run)
        refused(*arguments, words=[f"{run} is being written by process {os.getpid()} on"])
        assert content(run) == before
    assert main([str(one) for one in arguments]) == 0


@pytest.mark.parametrize(
    "options, words",
    [
        ([], ["give either --user or --history"]),
        (["--all", "--user", "1001"], ["give either --user or --history, or --all or --users"]),
        (["--all"], ["--all and --users need --out"]),
        (["--user", "1001", "--shards", "2"], ["--shards and --rows-per-file are for --all"]),
        (["--user", "1001", "--unknown", "skip"], ["unknown is skip: only --history and --users"]),
        (["--user", "1001", "--out", "x.parquet"], ["need --out, and nothing else takes it"]),
        (["--all", "--out", "x"], ["out is 'x': a file's name must end in .parquet"]),
        (["--user", "1001", "--history", "50003"], ["give either --user or --history"]),
        (["--user", "17"], ["unknown user '17'"]),
        (["--history", "50003,8", "--unknown", "refuse"], ["unknown item '8'"]),
        (["--history", ","], ["an empty history"]),
        (["--history", "50003", "--items", "50010,9"], ["unknown item '9'"]),
        (["--history", "50003", "--k", "0"], ["k is 0"]),
        (["--history", "50003", "--k", "few"], ["--k", '"few"']),
        (["--history", "50003", "--k", "1.5"], ["--k is 1.5: a whole number is needed"]),
        (["--history", "50003", "--max-len", "1e-3"], ["--max-len is 1e-3: a whole number"]),
        (["--history", '"50003'], ['history has a quote that does not end with its id: "50003']),
        (["--history", "50003,,50005"], ["history has an empty id, number 2: 50003,,50005"]),
        (["--user"], ["--user requires an argument"]),
    ],
)
def test_wrong_requests_for_recommendations(refused, place, options, words):
    refused("recommend", place / "run", *options, words=words)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["frobnicate"], ['"frobnicate"', "prepare, append, compact, forget, train"]),
        (["train"], ['"train"', "--log requires an argument"]),
        (["prepare", "events.csv"], ['"prepare"', "--folder requires an argument"]),
        (["recommend"], ['"recommend"', "--run requires an argument"]),
        (["train", "a", "b", "c", "d"], ["train has no place for 'c d'", "train --help"]),
        (["evaluate", "a", "--frob"], ["--frob"]),
        (["prepare", "none.csv", "log"], ["none.csv does not exist"]),
        (["train", "none", "run"], ["none is not a prepared log"]),
        (["evaluate", "none"], ["none/config.json is missing", "popularity, recent-popularity"]),
        (["similar", "none", "--item", "1"], ["none/config.json is missing"]),
        (["similar", "run"], ['"similar"', "--item requires an argument"]),
        (["evaluate", "popularity"], ["--log is needed to evaluate popularity"]),
        (["evaluate", "none", "--split", "global-time"], ["--split global-time", "baselines"]),
        (["evaluate", "none", "--last-events", 2], ["--last-events 2", "baselines"]),
        (["recommend", "none", "--history", "1"], ["none/config.json is missing"]),
        (["compare", "none", "none.json"], ["no evaluation in none", "no such folder"]),
        (["compare", "a.json", "b.json"], ["no evaluation in a.json"]),
        (["compare", "a", "b", "--ranking", "some"], ["--ranking", '"some"']),
        (["report", "none"], ["none of none is a trained run"]),
        (["report", "none", "--out", "."], ["out is .: the name of a file is needed"]),
        (["prepare", "none.csv", "log", "--item-kinds", "a=title"], ["item_kinds is 'a=title'"]),
        (["serve", "none", "--drain", "nan"], ["drain is nan: a finite number"]),
        (["serve", "none", "--drain", "-1"], ["drain is -1.0: a finite number of at least 0"]),
        (["serve", "none", "--threads", 0], ["threads is 0: it must be at least 1"]),
        (["demo", "folder", "--epochs", "0"], ["training.epochs is 0"]),
        (["demo", "folder", "--events", "none.csv"], ["none.csv does not exist"]),
    ],
)
def test_everything_else_that_is_wrong_is_said_in_a_line(
    refused, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    refused(*arguments, words=words)
    assert list(tmp_path.iterdir()) == []


def test_what_is_hinted_at_works(refused, cli, place, tmp_path):
    """Runs and baselines are evaluated by different commands; a path may need quotes."""
    folder = tmp_path / "my baselines" / "transitions"
    cli("evaluate", "transitions", "--log", place / "log", "--out", folder)
    wanted = ["--on", "valid", "--ranking", "uni100"]
    _, shown = refused("compare", folder, place / "run", *wanted, words=[folder])
    hint = shlex.split(shown.split("run  blossomrec ")[1])
    cli(*(str(place / "log") if word == "LOG" else word for word in hint))
    run = tmp_path / "a run"
    shutil.copytree(place / "run", run)
    _, shown = refused("compare", folder, run, *wanted, words=[run])
    cli(*shlex.split(shown.split("run  blossomrec ")[1]))
    assert "ndcg@10" in cli("compare", folder, run, *wanted)


def test_a_missing_device_is_named(refused, place, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["device is 'cuda'", "no CUDA device"]
    refused("evaluate", place / "run", "--device", "cuda", words=words)
    refused("recommend", place / "run", "--history", "50003", "--device", "cuda", words=words)


def test_a_file_in_the_place_of_a_folder_is_named(refused, place, tmp_path):
    (tmp_path / "run").write_text("notes")
    arguments = ["train", place / "log", tmp_path / "run", "--quiet", *small_flags()]
    refused(*arguments, words=[tmp_path / "run"])
    assert (tmp_path / "run").read_text() == "notes"


def test_evaluations_of_different_cases_are_not_compared(refused, cli, place, tmp_path):
    for split in ("leave-one-out", "global-time"):
        out = tmp_path / split
        cli("evaluate", "popularity", "--log", place / "log", "--split", split, "--out", out)
    several = tmp_path / "several"
    flags = ["--last-events", 3, "--out", several]
    cli("evaluate", "popularity", "--log", place / "log", *flags)
    words = ["cannot be compared", "first", "second"]
    both = [*words, "split is 'leave-one-out'", "'global-time'"]
    refused("compare", tmp_path / "leave-one-out", tmp_path / "global-time", words=both)
    refused("compare", tmp_path / "leave-one-out", several, words=words)
