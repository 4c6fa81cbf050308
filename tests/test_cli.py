import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest

from blossomrec.cli import main
from blossomrec.config import RunConfig, from_dict, with_options
from blossomrec.data.log import EventLog
from blossomrec.evaluation.evaluation import load_evaluation
from blossomrec.recommender import BlossomRec
from blossomrec.run.description import read_run_config
from blossomrec.training import trainer
from command_line import prepare_and_train, python
from forked_commands import PATIENCE, ForkedCommand
from small_options import SMALL, small_flags

pytestmark = pytest.mark.usefixtures("one_thread", "wide_terminal")


@pytest.fixture(scope="module")
def place(one_thread, tiny_events, tmp_path_factory):
    """A folder with events, their prepared log, and a run that was trained on it. Read only."""
    return prepare_and_train(tiny_events, tmp_path_factory.mktemp("place"))


def test_from_a_file_to_a_report(cli, tiny_events, tmp_path):
    pytest.importorskip("matplotlib", reason="the report draws its plots with matplotlib")
    tiny_events.rename({"user_id": "who", "item_id": "what", "timestamp": "when"}).write_csv(
        tmp_path / "events.csv"
    )
    log, first, second = (tmp_path / name for name in ("log", "first", "second"))
    columns = ["--user", "who", "--item", "what", "--timestamp", "when"]
    shown = cli("prepare", tmp_path / "events.csv", log, *columns)
    for words in ("users .* 60 ", "items .* 80 ", "events .* 1,830 ", "longest history .* 60 "):
        assert re.search(words, shown)
    assert shown.splitlines()[-1] == f"next: blossomrec train {log} runs/log"

    shown = cli("train", log, first, "--verbose", *small_flags(epochs=2))
    resolved = json.loads(shown[: shown.index("best epoch")])
    assert from_dict(resolved) == with_options(RunConfig(), SMALL | {"epochs": 2})
    assert re.search(r"best epoch [12] of 2, .*ndcg@10 0\.\d{4}.* \(validation\)", shown)
    assert f"blossomrec evaluate {first}" in shown
    assert cli("train", log, second, "--quiet", *small_flags(), "--model.attention", "full") == ""

    for run in (first, second):
        shown = cli("evaluate", run)
        assert "full ranking" in shown and "ndcg@10" in shown and "uni100" not in shown
        shown = cli("evaluate", run, "--ranking", "uni100")
        # Of 80 items everyone has met between 3 and 60.
        assert "uni20-77_ndcg@10" in shown and "sampled ranking (uni20-77)" in shown
    popular = tmp_path / "popularity"
    shown = cli("evaluate", "popularity", "--log", log, "--out", popular)
    assert "popularity: leave-one-out, full ranking" in shown

    metrics = json.loads((first / "metrics.json").read_text())
    assert set(metrics) == {"test-full", "test-uni100"}
    for ranking in ("full", "uni100"):
        evaluation = load_evaluation(first / f"evaluations/test-{ranking}.json")
        assert evaluation.metrics == metrics[f"test-{ranking}"]
        assert evaluation.protocol.ranking == ranking
        assert evaluation.protocol.filter_seen is True

    shown = cli("compare", first, popular)
    assert f"{first} (first) and {popular} (second), 58 users" in shown
    assert "ndcg@10" in shown and "Cohen's d" in shown
    assert "uni20-77_hr@10" in cli("compare", first, second, "--ranking", "uni100")
    own = first / "evaluations/test-full.json"
    assert "ndcg@10" in cli("compare", own, second)

    out = tmp_path / "pages" / "report.html"
    shown = cli("report", popular, first, second, "--out", out, "--title", "All <three>")
    assert shown == f"wrote {out}\n"
    page = out.read_text()
    for words in ("All &lt;three&gt;", "popularity", "first", "second", "Sampled ranking", "Gates"):
        assert words in page


def test_the_whole_path_in_processes_of_its_own(place, tmp_path):
    log, run = tmp_path / "log", tmp_path / "run"
    done = python("prepare", place / "events.parquet", log)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1,830" in done.stdout
    done = python("train", log, run, "--quiet", *small_flags())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = python("recommend", run, "--user", "1001", "--k", "3", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [row["rank"] for row in json.loads(done.stdout)] == [1, 2, 3]
    done = python("recommend", run, "--user", "5")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "blossomrec: unknown user '5'\n"


def test_recommendations_for_users(cli, place):
    recommender = BlossomRec.from_pretrained(place / "run")
    users = ["1004", "1001"]
    wanted = recommender.recommend(users, 4)
    asked = ["recommend", place / "run", "--user", "1004", "--user", "1001", "--k", 4]
    assert pl.DataFrame(json.loads(cli(*asked, "--json")), wanted.schema).equals(wanted)
    lines = [line for line in cli(*asked).splitlines() if re.search(r"\d\.\d{4}", line)]
    assert len(lines) == 8
    for line, row in zip(lines, wanted.iter_rows(), strict=True):
        user, item, score, rank = re.split(r"\s*│\s*", line.strip("│ "))
        assert (int(user), int(item), int(rank)) == (row[0], row[1], row[3])
        assert float(score) == pytest.approx(row[2], abs=1e-4)


def test_recommendations_after_a_history(cli, place, capsys):
    recommender = BlossomRec.from_pretrained(place / "run")
    history = [50_003, 50_010, 50_017]
    asked = ["recommend", place / "run", "--history", "50003, 50010,50017", "--json"]
    wanted = recommender.recommend_history(history)
    assert pl.DataFrame(json.loads(cli(*asked)), wanted.schema).equals(wanted)
    viewed = json.loads(cli(*asked, "--no-filter-viewed", "--k", "80"))
    assert {row["item_id"] for row in viewed} >= set(history) and len(viewed) == 80
    chosen = json.loads(cli(*asked, "--items", "50003,50024,50031"))
    assert {row["item_id"] for row in chosen} == {50_024, 50_031}

    known = json.loads(cli(*asked))
    asked[3] += ",7"
    assert main([str(one) for one in asked]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == known
    assert shown.err == (
        "blossomrec: warning: 1 of 4 items of the history are unknown and skipped: '7'\n"
    )


def test_items_close_to_others(cli, place):
    wanted = BlossomRec.from_pretrained(place / "run").similar_items([50_003, 50_010], 3)
    asked = ["similar", place / "run", "--item", 50_003, "--item", 50_010, "--k", 3]
    assert pl.DataFrame(json.loads(cli(*asked, "--json")), wanted.schema).equals(wanted)
    shown = cli(*asked)
    assert all(str(one) in shown for one in wanted["similar_id"])


def test_recommending_follows_the_evaluation_unless_told(cli, repeat_log, tmp_path):
    run = tmp_path / "run"
    cli("train", repeat_log.folder, run, "--quiet", *small_flags())
    asked = ["recommend", run, "--user", "1001", "--k", "25", "--json"]
    usual, viewed, unviewed = (
        cli(*asked, *flag) for flag in ([], ["--no-filter-viewed"], ["--filter-viewed"])
    )
    assert usual == viewed and len(json.loads(usual)) == 25 > len(json.loads(unviewed))


@pytest.fixture(scope="module")
def spelled(one_thread, tmp_path_factory):
    """A run whose items have commas, quotes and characters that not every terminal has."""
    rng = np.random.default_rng(0)
    ids = ["a, b", 'say "hi"', "café", "👍", "plain", "x", "y", "z"]
    events = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(20), 8),
            "item_id": [ids[item] for _ in range(20) for item in rng.permutation(8)],
            "timestamp": np.arange(160),
        }
    )
    folder = tmp_path_factory.mktemp("spelled")
    log = EventLog.prepare(events, folder / "log")
    BlossomRec(**SMALL).fit(log, folder / "run", progress=False)
    return folder / "run"


def test_ids_with_commas_stand_in_quotes(cli, spelled):
    recommender = BlossomRec.from_pretrained(spelled)
    asked = ["recommend", spelled, "--json", "--unknown", "refuse", "--history"]
    shown = json.loads(cli(*asked, ' "a, b" , plain,"say ""hi"""'))
    wanted = recommender.recommend_history(["a, b", "plain", 'say "hi"'])
    assert [row["item_id"] for row in shown] == wanted["item_id"].to_list()
    # A quote inside of an id is one like any other.
    assert json.loads(cli(*asked, 'say "hi"')) == json.loads(cli(*asked, '"say ""hi"""'))
    chosen = json.loads(cli(*asked, "plain", "--items", '"a, b",x'))
    assert {row["item_id"] for row in chosen} == {"a, b", "x"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_encoding_can_show_recommendations(spelled, encoding):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = ["recommend", str(spelled), "--history", "plain", "--k", "9", "--no-filter-viewed"]
    program = (
        "from blossomrec.cli import main\n"
        f"assert main({command}) == 0\nprint('---')\nassert main({[*command, '--json']}) == 0"
    )
    python = [sys.executable, "-c", program]
    done = subprocess.run(python, capture_output=True, check=True, env=environment)
    assert done.stderr == b""
    shown = done.stdout.decode(encoding).split("---\n")
    # A table is of one kind: what one encoding lacks is in ASCII throughout.
    assert ("👍" if encoding == "utf-8" else "\\U0001f44d") in shown[0]
    assert ("café" if encoding == "utf-8" else "caf\\xe9") in shown[0]
    assert {"café", "👍", "a, b"} <= {row["item_id"] for row in json.loads(shown[1])}


def test_tables_in_a_file_are_whole(place, monkeypatch):
    """No column is cut, whatever the width that a terminal would have."""
    monkeypatch.delenv("COLUMNS")
    done = ForkedCommand(["evaluate", place / "run"]).wait(PATIENCE)
    assert (done.code, done.stderr) == (0, "")
    assert "…" not in done.stdout
    [row] = [line for line in done.stdout.splitlines() if line.startswith("│ ndcg@10 ")]
    assert re.fullmatch(r"│ ndcg@10 +│ 0\.\d{4} │ 0\.\d{4}–0\.\d{4} │", row)
    monkeypatch.setenv("COLUMNS", "80")
    done = ForkedCommand(["compare", place / "run", place / "run"]).wait(PATIENCE)
    lines = done.stdout.splitlines()
    assert done.code == 0 and "…" not in done.stdout
    assert max(len(line) for line in lines[1:]) <= 80
    assert [line.split()[0] for line in lines if "@" in line][:2] == ["ndcg@10", "hr@10"]
    assert len(re.findall(r"0\.\d{4}", next(line for line in lines if "ndcg@10" in line))) >= 3


def test_square_brackets_in_ids_are_no_markup(cli, tmp_path):
    rng = np.random.default_rng(0)
    ids = [f"[/{number}][red]" for number in range(40)]
    events = pl.DataFrame(
        {
            "user_id": [f"[bold]{user}" for user in range(30) for _ in range(8)],
            "item_id": [ids[item] for _ in range(30) for item in rng.permutation(40)[:8]],
            "timestamp": list(range(240)),
        }
    )
    BlossomRec(**SMALL).fit(events, tmp_path / "run", progress=False).save_pretrained(
        tmp_path / "saved"
    )
    log = EventLog.prepare(events, tmp_path / "log")
    shown = cli("recommend", tmp_path / "saved", "--user", "[bold]3", "--log", log.folder)
    assert shown.count("[bold]3") == 10
    assert len(set(re.findall(r"\[/\d+\]\[red\]", shown))) == 10


@pytest.mark.parametrize("name", ["options.yaml", "options.toml", "options.json"])
def test_a_flag_beats_the_file_beats_the_default(cli, tiny_log, tmp_path, monkeypatch, name):
    seen = []

    def fit(self, *arguments, **options):
        seen.append(self.config)
        return self

    monkeypatch.setattr(BlossomRec, "fit", fit)
    text = {
        "options.yaml": (
            "model: {max_len: 50, norm: pre, dropout: 0.5}\n"
            "training: {learning_rate: 1e-2, tracker: tensorboard, epochs: 7}\n"
            "evaluation: {ks: [1, 3], filter_seen: 'no'}\n"
        ),
        "options.toml": (
            "model = {max_len = 50, norm = 'pre', dropout = 0.5}\n"
            "training = {learning_rate = 1e-2, tracker = 'tensorboard', epochs = 7}\n"
            "evaluation = {ks = [1, 3], filter_seen = 'no'}\n"
        ),
        "options.json": (
            '{"model": {"max_len": 50, "norm": "pre", "dropout": 0.5}, '
            '"training": {"learning_rate": 1e-2, "tracker": "tensorboard", "epochs": 7}, '
            '"evaluation": {"ks": [1, 3], "filter_seen": "no"}}'
        ),
    }
    file = tmp_path / name
    file.write_text(text[name])
    start = ["train", tiny_log.folder, tmp_path / "run", "--quiet"]
    own = {"norm": "pre", "dropout": 0.5, "learning_rate": 1e-2, "tracker": "tensorboard"}
    own |= {"ks": (1, 3), "filter_seen": "no"}
    cli(*start, "--config", file)
    cli(*start, f"--config={file}", "--model.max-len", 9, "--training.epochs", 1)
    cli(*start, "--evaluation.ks", 20, "--training.tracker", "", "--config", file)
    cli(*start)
    assert seen == [
        with_options(RunConfig(), own | {"max_len": 50, "epochs": 7}),
        with_options(RunConfig(), own | {"max_len": 9, "epochs": 1}),
        with_options(RunConfig(), own | {"max_len": 50, "epochs": 7, "ks": (20,), "tracker": ""}),
        RunConfig(),
    ]


def test_a_saved_configuration_trains_the_same_again(cli, place, tmp_path):
    saved = json.loads((place / "run" / "config.json").read_text())["config"]
    (tmp_path / "again.json").write_text(json.dumps(saved))
    cli("train", place / "log", tmp_path / "run", "--quiet", "--config", tmp_path / "again.json")
    weights = [folder / "model.safetensors" for folder in (place / "run", tmp_path / "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_evaluation_takes_other_cut_offs_and_validation_events(cli, place, tmp_path):
    shown = cli("evaluate", place / "run", "--out", tmp_path, "--on", "valid", "--ks", 1, "--ks", 3)
    assert "ndcg@3" in shown and "ndcg@10" not in shown
    evaluation = load_evaluation(tmp_path / "evaluations/valid-full.json")
    assert evaluation.protocol.ks == (1, 3)
    shown = cli("evaluate", place / "run", "--out", tmp_path, "--filter-seen", "no")
    assert "those in the user's history included" in shown
    for name in ("recent-popularity", "transitions"):
        shown = cli("evaluate", name, "--log", place / "log", "--split", "global-time")
        assert f"{name}: global-time" in shown


@pytest.mark.parametrize("signum, code", [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stopped_training_saves_and_goes_on(cli, place, tmp_path, signum, code):
    run, log = tmp_path / "the run", place / "log"
    flags = small_flags(epochs=100_000, patience=100_000)
    process = ForkedCommand(["train", log, run, "--quiet", *flags])
    lines, deadline = run / "log.jsonl", time.monotonic() + PATIENCE
    while not (lines.is_file() and lines.read_bytes().count(b"\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline, process.wait(0)
        time.sleep(0.02)
    process.send_signal(signum)
    ended = process.wait(PATIENCE)
    assert ended.code == code
    command = f"blossomrec train {log} '{run}' --resume auto"
    stopped = f"training stopped by {signum.name}, checkpoint saved"
    assert ended.stderr == f"blossomrec: {stopped}; to go on: {command}\n"
    last = max(run.glob("checkpoints/step-*")) / "state.json"
    epoch = json.loads(last.read_text())["content"]["state"]["training"]["epoch"]
    # The command that was named, but for one thing that may change.
    named = shlex.split(command)[1:]
    cli(*named, "--quiet", "--training.epochs", epoch + 1)
    epochs = [json.loads(line)["epoch"] for line in lines.read_text().splitlines()]
    assert epochs == list(range(1, epoch + 2))
    assert "ndcg@10" in cli("evaluate", run)


def test_ctrl_c_has_its_own_exit_code(place, tmp_path, monkeypatch, capsys):
    original = trainer.device_steps

    def stopping(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        yield from original(*arguments)

    monkeypatch.setattr(trainer, "device_steps", stopping)
    arguments = ["train", place / "log", tmp_path / "run", "--quiet", *small_flags()]
    capsys.readouterr()
    assert main([str(one) for one in arguments]) == 130
    assert capsys.readouterr().err == (
        "blossomrec: training stopped by SIGINT, checkpoint saved; to go on: "
        f"blossomrec train {place / 'log'} {tmp_path / 'run'} --resume auto\n"
    )
    monkeypatch.setattr(BlossomRec, "fit", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    assert main([str(one) for one in arguments]) == 130
    assert capsys.readouterr().err == "blossomrec: stopped\n"


def test_a_stopped_demo_names_its_own_command(tmp_path, monkeypatch, capsys):
    original = trainer.device_steps

    def stopping(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        yield from original(*arguments)

    monkeypatch.setattr(trainer, "device_steps", stopping)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "some where", "--epochs", "1"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("; to go on: blossomrec demo 'some where' --epochs 1")


def test_training_says_in_five_lines_what_it_does(place, tmp_path, capsys):
    flags = small_flags(tokens_per_batch=128, warmup_steps=1)
    arguments = ["train", place / "log", tmp_path / "run", *flags]
    capsys.readouterr()
    assert main([str(one) for one in arguments]) == 0
    shown = capsys.readouterr()
    names = [line.split(":")[0] for line in shown.err.splitlines()[:5]]
    assert names == ["log", "model", "device", "training", "run"]
    assert re.match(r"epoch 1/1  loss \d", shown.err.splitlines()[5])
    assert len(shown.err.splitlines()) == 6
    assert "60 users, 1,830 events" in shown.err
    assert shown.out.startswith("best epoch 1 of 1") and len(shown.out.splitlines()) == 1


def test_a_run_goes_on_with_its_own_options(cli, place, tmp_path):
    log, run = place / "log", tmp_path / "run"
    cli("train", log, run, "--quiet", *small_flags(epochs=1), "--evaluation.ks", 3)
    begun = read_run_config(run).config
    assert begun.evaluation.ks == (3,)
    file = tmp_path / "more.yaml"
    file.write_text("model: {dropout: 0.2, heads: 2}\ntraining: {epochs: 2}\n")
    cli("train", log, run, "--quiet", "--resume=auto", "--config", file)
    assert read_run_config(run).config == with_options(begun, {"epochs": 2})
    # A flag beats the file, and what was changed last is what the run has.
    arguments = ["--training.epochs", 3, "--training.learning-rate", 5e-3]
    cli("train", "--quiet", *arguments, "--config", file, "--resume", "auto", log, run)
    assert read_run_config(run).config == with_options(begun, {"epochs": 3})
    shown = cli("train", f"--log={log}", "--run", run, "--resume", "auto", "--verbose", "--quiet")
    assert from_dict(json.loads(shown)) == with_options(begun, {"epochs": 3})
    lines = (run / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]


def test_a_run_without_checkpoints_begins_with_what_is_given(cli, place, tmp_path):
    run = tmp_path / "run"
    cli("train", place / "log", run, "--quiet", *small_flags(), "--model.dropout", 0.4)
    shutil.rmtree(run / "checkpoints")
    cli("train", place / "log", run, "--quiet", *small_flags(), "--resume", "auto")
    assert read_run_config(run).config == with_options(RunConfig(), SMALL)


def test_a_log_grows_and_forgets(cli, tiny_events, tmp_path):
    tiny_events[:-9].write_csv(tmp_path / "first.csv")
    tiny_events[-9:].write_csv(tmp_path / "second.csv")
    log = tmp_path / "log"
    cli("prepare", tmp_path / "first.csv", log)
    shown = " ".join(cli("append", log, tmp_path / "second.csv").replace("│", " ").split())
    assert " events 9 " in shown and " late events 0 " in shown
    assert "this table was there already" in cli("append", log, tmp_path / "second.csv")
    assert "this table was there already" in cli("append", log, tmp_path / "first.csv")
    assert cli("compact", log).strip() == "merged 1 appended tables"
    assert cli("compact", log).strip() == "there is nothing to merge"
    assert EventLog.open(log).num_events == len(tiny_events)
    user = tiny_events["user_id"][0]
    shown = " ".join(cli("forget", log, user).split())
    own = tiny_events.filter(user_id=user).height
    assert shown == f"removed user {user!r} with {own:,} events from {log}"
    assert EventLog.open(log).num_events == len(tiny_events) - own


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_who_has_seen_enough_is_no_error(place, monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    arguments = ["recommend", place / "run", "--user", "1001", "--json"]
    command = [sys.executable, "-m", "blossomrec", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    shown = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), shown) == (0, "")
