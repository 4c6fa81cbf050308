"""The search: trials, pruning, going on after a kill, and what it leaves behind."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import polars as pl
import pytest

from blossomrec import tune
from blossomrec.config import LARGEST_SEED, RunConfig, from_dict, read_file, with_options
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, MissingExtraError, RunError
from blossomrec.training.watch import TrainingInterrupted
from blossomrec.tuning import study as studies
from blossomrec.tuning import workers
from blossomrec.tuning.space import read_space
from blossomrec.tuning.trial import run_trial
from command_line import refuse
from forked_commands import PATIENCE, ForkedCommand
from small_options import SMALL, small_flags

optuna = pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("one_thread")

SPACE = """
[model]
dropout = {low = 0.0, high = 0.5}
[training]
learning_rate = {low = 1e-4, high = 1e-1, log = true}
"""


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(SPACE)
    return str(path)


def small(**options):
    return with_options(RunConfig(), {**SMALL, **options})


def search(log, folder, space, config=None, **options):
    options = {"trials": 3, "startup": 1, "min_epochs": 1, **options}
    return tune(log, folder, config or small(), space=space, progress=False, **options)


def wait_until(true):
    for _ in range(3_000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come true in a minute")


def lines(folder):
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def told(trials):
    """What does not depend on the clock."""
    return [{key: one[key] for key in one if key != "seconds"} for one in trials]


def test_the_best_of_the_trials_is_a_configuration_that_trains(
    tiny_log, tmp_path, space, cli, wide_terminal
):
    folder, log = tmp_path / "tuning", tiny_log.folder
    flags = ["--space", space, "--trials", 3, "--keep", 1, *small_flags(epochs=2)]
    shown = cli("tune", log, folder, *flags)
    trials = lines(folder)
    assert [one["trial"] for one in trials] == [0, 1, 2]
    # The first is the configuration as it was given.
    assert trials[0]["options"] == {"model.dropout": 0.2, "training.learning_rate": 0.005}
    best = max(trials, key=lambda one: one["ndcg@10"])
    assert f"{best['ndcg@10']:.4f}" in shown and "3 trials: 3 complete" in shown
    assert "importance" in shown and (folder / "importances.svg").read_text().startswith("<?xml")
    for one in trials:
        run = folder / "trials" / f"{one['trial']:04d}"
        assert (run / "model.safetensors").exists() == (one is best)
        assert (run / "log.jsonl").exists() and not (run / "checkpoints").exists()
        epochs = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        assert max(epoch["validation"]["ndcg@10"] for epoch in epochs) == one["ndcg@10"]
    config = from_dict(read_file(folder / "best.yaml"))
    assert config.training.learning_rate == best["options"]["training.learning_rate"]
    cli("train", log, tmp_path / "run", "--config", folder / "best.yaml", "--quiet")
    # Such a training is that of the trial, to the bit.
    weights = folder / "trials" / f"{best['trial']:04d}" / "model.safetensors"
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights.read_bytes()


def test_a_search_that_was_killed_goes_on_to_the_same_outcome(tiny_log, tmp_path, space):
    flags = ["--space", space, "--trials", "3", "--startup", "1", "--min-epochs", "1", "--quiet"]
    config = small(epochs=3)
    flags += small_flags(epochs=3)
    folder = tmp_path / "killed"
    process = ForkedCommand(["tune", tiny_log.folder, folder, *flags])
    log = folder / "trials" / "0000" / "log.jsonl"
    wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= 1)
    process.send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE).code == -signal.SIGKILL
    search(tiny_log, folder, space, config)
    whole = search(tiny_log, tmp_path / "whole", space, config)
    assert told(lines(folder)) == told(lines(tmp_path / "whole")) == told(whole.trials)


def test_more_trials_go_on_from_those_there_are(tiny_log, tmp_path, space):
    first = search(tiny_log, tmp_path / "t", space, trials=1)
    more = search(tiny_log, tmp_path / "t", space, trials=2)
    assert more.trials[:1] == first.trials and len(more.trials) == 2
    again = search(tiny_log, tmp_path / "t", space, trials=2)
    assert again == more


def test_a_trial_that_is_worse_at_the_same_epoch_ends_early(tiny_log, tmp_path, space):
    # Nothing is learned at such a rate.
    (tmp_path / "space.toml").write_text(
        "[training]\nlearning_rate = {choices = [0.005, 1e-9]}\n[model]\ndropout = 0.1"
    )
    result = search(tiny_log, tmp_path / "t", space, small(epochs=2), trials=5)
    states = {one["options"]["training.learning_rate"]: one["state"] for one in result.trials}
    assert states[1e-9] == "pruned"
    pruned = [one for one in result.trials if one["state"] == "pruned"]
    assert all(one["epochs"] == 1 for one in pruned)
    assert all(one["epochs"] == 2 for one in result.trials if one["state"] == "complete")
    assert result.config is not None and result.config.model.dropout == 0.1
    assert result.config.training.learning_rate == 0.005


def test_a_first_trial_that_only_waits_is_begun_once(tiny_log, tmp_path, space):
    folder, known = tmp_path / "t", {"model.dropout": 0.2, "training.learning_rate": 0.005}
    search(tiny_log, folder, space, minutes=1e-300)
    studies.open_study(folder, studies.read_search(folder)).enqueue_trial(known)
    trials = search(tiny_log, folder, space, trials=2).trials
    assert [one["trial"] for one in trials] == [0, 1]
    assert trials[0]["options"] == known != trials[1]["options"]


def test_a_trial_that_was_to_end_when_it_was_killed_ends(tiny_log, tmp_path, space):
    folder = tmp_path / "t"
    search(tiny_log, folder, space, trials=2, min_epochs=1)
    known = studies.read_search(folder)
    study = studies.open_study(folder, known)
    trial = studies.trial_of(study, known, study.ask().number)
    studies.suggest(trial, known.space)
    trial.report(0.0, 1)
    result = search(tiny_log, folder, space, trials=2)
    assert (result.trials[2]["state"], result.trials[2]["epochs"]) == ("pruned", 1)
    assert not (folder / "trials" / "0002").exists()


@pytest.mark.parametrize(
    ("count", "visible", "seen"),
    [
        (0, None, {}),
        (1, None, {}),
        (2, None, {"CUDA_VISIBLE_DEVICES": "1"}),
        (2, "4,7", {"CUDA_VISIBLE_DEVICES": "7"}),
    ],
)
def test_processes_take_turns_at_several_gpus(monkeypatch, count, visible, seen):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert workers._gpu(3) == seen


@pytest.mark.parametrize("pruner", ["hyperband", "none"])
def test_other_pruners_are_taken(tiny_log, tmp_path, space, pruner):
    config = small(epochs=2)
    result = search(tiny_log, tmp_path / "t", space, config, trials=2, pruner=pruner)
    assert len(result.trials) == 2 and result.config is not None


def test_options_that_do_not_fit_each_other_are_a_trial_that_failed(tiny_log, tmp_path, space):
    (tmp_path / "space.toml").write_text("[model]\nheads = {choices = [2, 3]}")
    result = search(tiny_log, tmp_path / "t", space, trials=6)
    failed = [one for one in result.trials if one["state"] == "failed"]
    assert failed and all("multiple of heads, 3" in one["reason"] for one in failed)
    assert len(result.trials) == 6 and result.config is not None
    (tmp_path / "space.toml").write_text("[model]\nheads = {choices = [3]}")
    with pytest.raises(ConfigError, match=r"none of 2 trials came to its end; the last: .*heads"):
        search(tiny_log, tmp_path / "none", space, trials=2)


def test_test_events_have_no_part_in_it(tiny_events, tmp_path, space):
    last = tiny_events.sort("user_id", "timestamp").with_columns(
        last=pl.int_range(pl.len()).over("user_id") == pl.len().over("user_id") - 1,
    )
    # Each user's last event is that of another one; of very short histories none is held out.
    last = last.filter(pl.len().over("user_id") >= 3)
    tests = last.filter("last")
    swapped = tests.with_columns(tests["item_id"].reverse())
    assert (tests["item_id"] != swapped["item_id"]).any()
    config = with_options(small(epochs=1), {"filter_seen": "yes"})
    outcomes = []
    for name, ends in (("first", tests), ("second", swapped)):
        events = pl.concat([last.filter(~pl.col("last")), ends]).drop("last")
        log = EventLog.prepare(events, tmp_path / name)
        outcomes.append(
            told(search(log, tmp_path / f"tuning-{name}", space, config, trials=2).trials)
        )
    assert outcomes[0] == outcomes[1] and outcomes[0][0]["state"] == "complete"


def test_trackers_have_a_run_of_each_trial(tiny_log, tmp_path, space):
    pytest.importorskip("tensorboard")
    config = small(epochs=1, tracker="tensorboard")
    search(tiny_log, tmp_path / "t", space, config, trials=2, keep=1)
    folder = tmp_path / "t" / "tracking" / "tensorboard"
    assert sorted(path.name for path in folder.iterdir()) == ["t-0000", "t-0001"]
    with pytest.raises(ConfigError, match="no tracker 'tensorbord'"):
        search(tiny_log, tmp_path / "u", space, small(tracker="tensorbord"))
    assert not (tmp_path / "u").exists()


def test_a_search_of_before_there_were_trackers_goes_on(tiny_log, tmp_path, space):
    search(tiny_log, tmp_path / "t", space, small(epochs=1), trials=1)
    path = tmp_path / "t" / "tune.json"
    known = json.loads(path.read_text())
    for name in ("tracker", "track_model"):
        del known["config"]["training"][name]
    known["config"]["training"]["tensorboard"] = False
    path.write_text(json.dumps(known))
    assert len(search(tiny_log, tmp_path / "t", space, small(epochs=1), trials=2).trials) == 2


def test_trials_run_side_by_side(tiny_log, tmp_path, space):
    result = search(tiny_log, tmp_path / "t", space, small(epochs=1), trials=2, jobs=2)
    assert [one["trial"] for one in result.trials] == [0, 1]
    assert len({one["options"]["model.dropout"] for one in result.trials}) == 2
    assert result.value == max(one["ndcg@10"] for one in result.trials)


def begin_trial(log, folder, space, config):
    """A search with one trial under way."""
    from blossomrec.files import write_json
    from blossomrec.tuning.options import TuneOptions

    options = TuneOptions(space=space, trials=1, startup=1, min_epochs=1)
    parts = config, read_space(space, config.model), options, log.folder, log.identity
    one = studies.Search(*parts)
    folder.mkdir()
    write_json(folder / "tune.json", one.to_dict())
    return studies.open_study(folder, one).ask().number


def test_a_worker_ends_with_its_parent(tiny_log, tmp_path, space):
    folder, config = tmp_path / "t", small(epochs=2_000, patience=2_000)
    number = begin_trial(tiny_log, folder, space, config)
    process = workers._start(folder, number, 0, 2)
    log = folder / "trials" / "0000" / "log.jsonl"
    wait_until(lambda: log.exists() and b"\n" in log.read_bytes())
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 1
    study = studies.open_study(folder, studies.read_search(folder))
    assert not study.trials[number].state.is_finished()


def test_a_signal_ends_all_workers(tiny_log, tmp_path, space, monkeypatch):
    started = []

    def start(folder, number, slot, jobs):
        started.append(subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE))
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return started[-1]

    monkeypatch.setattr(workers, "_start", start)
    with pytest.raises(TrainingInterrupted) as stop:
        search(tiny_log, tmp_path / "t", space, jobs=2)
    assert stop.value.signum == signal.SIGINT
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2


def test_a_worker_that_is_killed_fails_its_trial_alone(tiny_log, tmp_path, space, monkeypatch):

    def deadly(folder, number, slot, jobs):
        """The second trial is killed beside the first one; none needs a process of its own."""
        if number == 1:
            return subprocess.Popen(["sh", "-c", "kill -9 $$"])
        known = studies.read_search(folder)
        run_trial(folder, known, studies.open_study(folder, known), number)
        return subprocess.Popen(["sleep", "0.5" if number == 0 else "0"])

    monkeypatch.setattr(workers, "_start", deadly)
    trials = search(tiny_log, tmp_path / "t", space, small(epochs=1), trials=2, jobs=2).trials
    assert [one["state"] for one in trials[:2]] == ["complete", "failed"]
    assert trials[1]["reason"] == "its process was ended by signal 9"
    # It is done again beside the first one, or after it, when it can be pruned.
    assert trials[2]["state"] in ("complete", "pruned")


def test_a_trial_that_no_worker_survives_is_given_up(tiny_log, tmp_path, space, monkeypatch):
    monkeypatch.setattr(
        workers, "_start", lambda *given: subprocess.Popen(["sh", "-c", "kill -9 $$"])
    )
    # Each is tried three times.
    with pytest.raises(ConfigError, match=r"none of 6 trials .* was ended by signal 9"):
        search(tiny_log, tmp_path / "t", space, trials=2, jobs=2)


def test_no_trial_begins_when_the_time_is_over(tiny_log, tmp_path, space, monkeypatch):
    begun = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: begun)
    result = search(tiny_log, tmp_path / "t", space, minutes=1e-300)
    assert result.trials == [] and result.config is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 5}, "seed is 5, but .* was begun with 0"),
        ({"config": small(epochs=2)}, "training.epochs is 2"),
        ({"config": small(inner_size=8)}, "model.inner_size is 8"),
    ],
)
def test_a_folder_is_of_one_search(tiny_log, tmp_path, space, changed, words):
    begin_trial(tiny_log, tmp_path / "t", space, small())
    with pytest.raises(ConfigError, match=words):
        search(tiny_log, tmp_path / "t", space, **changed)
    (tmp_path / "space.toml").write_text("[model]\ndropout = {low = 0.0, high = 0.4}")
    with pytest.raises(ConfigError, match=r"dropout of the search space is \{.*0.4"):
        search(tiny_log, tmp_path / "t", space)


def test_what_is_wrong_is_refused_in_one_line(tiny_log, tmp_path, space, capsys, wide_terminal):
    log, folder = tiny_log.folder, tmp_path / "t"
    refuse(capsys, "tune", log, folder, "--space", "nothing", words=["no search space nothing"])
    refuse(capsys, "tune", log, folder, "--trials", 0, words=["trials is 0", "at least 1"])
    refuse(capsys, "tune", log, folder, "--jobs", 1.5, words=["jobs is 1.5"])
    refuse(capsys, "tune", log, folder, "--no-such", 1, words=["--no-such"])
    with pytest.raises(ConfigError, match="unknown option trails: known are space, trials"):
        tune(tiny_log, folder, trails=3)
    (tmp_path / "space.toml").write_text("[model]\ndropout = {low = 0, high = 3}")
    words = [space, "model.dropout.high is 3", "at most 0.95"]
    refuse(capsys, "tune", log, folder, "--space", space, words=words)
    assert not folder.exists()


def test_a_damaged_folder_is_refused(tiny_log, tmp_path, space):
    begin_trial(tiny_log, tmp_path / "t", space, small())
    (tmp_path / "t" / "tune.json").write_text('{"format": 7}')
    with pytest.raises(RunError, match=r"tune\.json is damaged: it has format 7"):
        search(tiny_log, tmp_path / "t", space)
    (tmp_path / "t" / "tune.json").unlink()
    (tmp_path / "t" / "study.db").write_bytes(b"no database" * 100)
    with pytest.raises(RunError, match=r"study\.db cannot be opened"):
        search(tiny_log, tmp_path / "t", space)


def test_nothing_in_the_study_is_pickled(tiny_log, tmp_path, space, monkeypatch):
    search(tiny_log, tmp_path / "t", space, trials=1)

    def refused(*arguments, **others):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(f"pickle.{name}", refused)
    search(tiny_log, tmp_path / "t", space, trials=2)
    with sqlite3.connect(tmp_path / "t" / "study.db") as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master")]
        kinds = {
            kind.upper()
            for table in tables
            for _, _, kind, *_ in database.execute(f"pragma table_info({table})")
        }
    assert kinds and "BLOB" not in kinds


def test_without_optuna_the_extra_is_named(tiny_log, tmp_path, space, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'blossomrec\[tune\]'"):
        search(tiny_log, tmp_path / "t", space)
    assert not (tmp_path / "t").exists()


def test_seeds_up_to_the_largest_are_taken(tiny_log, tmp_path, space):
    assert search(tiny_log, tmp_path / "t", space, trials=1, seed=LARGEST_SEED).trials
