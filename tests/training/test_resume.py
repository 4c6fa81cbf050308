import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from small_training import CrashError, crash, outcome, small_config, small_train

from blossomrec.config import from_dict
from blossomrec.data.log import EventLog
from blossomrec.data.split import Split
from blossomrec.errors import ConfigError, RunError
from blossomrec.models import build_model
from blossomrec.training import TrainingInterrupted, train, trainer
from blossomrec.training.checkpoint import Checkpoints, Pace, _content_digest
from blossomrec.training.resume import stored_options
from blossomrec.training.state import seeded
from forked_commands import PATIENCE, Forked


@pytest.fixture
def saves_every(monkeypatch):
    """Make checkpoints due every so many steps instead of after so much time."""

    def arrange(steps):
        asked = [0]

        def due(pace):
            asked[0] += 1
            return asked[0] % steps == 0

        monkeypatch.setattr(Pace, "due", due)

    return arrange


@pytest.fixture(scope="module")
def undisturbed(tiny_log, tmp_path_factory):
    """The folder of a training that nothing disturbed, done once for each configuration."""
    done = {}

    def folder(config):
        if config not in done:
            done[config] = tmp_path_factory.mktemp("undisturbed") / "run"
            small_train(tiny_log, config, done[config])
        return done[config]

    return folder


def newest(run: Path) -> dict:
    """The numbers of the newest checkpoint's state."""
    last = max((run / "checkpoints").glob("step-*"))
    return json.loads((last / "state.json").read_text())["content"]["state"]["training"]


def train_and_wait(log: EventLog, run: Path, there: Path) -> None:
    """Train with a checkpoint after every third step; wait before the 17th."""
    steps, seen = trainer.device_steps, []

    def waiting_steps(*arguments):
        for step in steps(*arguments):
            seen.append(step)
            if len(seen) == 17:
                # The last checkpoint is written aside.
                while not any((run / "checkpoints").glob("step-*15")):
                    time.sleep(0.01)
                there.touch()
                time.sleep(600)
            yield step

    trainer.device_steps = waiting_steps
    Pace.due = lambda pace: len(seen) % 3 == 0
    small_train(log, small_config(), run)


def test_a_killed_training_resumes_to_the_same_numbers(tiny_log, undisturbed, tmp_path):
    whole = outcome(undisturbed(small_config()))
    run, there = tmp_path / "run", tmp_path / "there"
    process = Forked(train_and_wait, tiny_log, run, there)
    while not there.exists():
        assert process.poll() is None, process.wait(0)
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE).code == -signal.SIGKILL
    state = newest(run)
    assert (state["epoch"], state["step"]) == (1, 15)
    assert state["epoch_step"] > 0
    result = small_train(tiny_log, small_config(), run)
    assert outcome(run) == whole
    assert result.validation == whole[2][result.best_epoch - 1]["validation"]


@pytest.mark.parametrize(
    "options",
    [
        {"backbone": "bert4rec"},
        {"attention": "full", "loss": "sampled_softmax", "schedule": "cosine"},
        {"backbone": "gru4rec", "loss": "bpr", "layers": 2},
        {"backbone": "mamba4rec", "residual": "gated"},
        {"backbone": "gru4rec", "repeats": "on", "ema_decay": 0.8},
        {"loss": "gbce", "norm": "post", "validate_every": 2, "patience": 1},
        {
            **{"loss": "sampled_softmax", "uniform_share": 0.5, "schedule": "cosine"},
            **{"table_optimizer": "lazy_adamw", "ema_decay": 0.9, "validate_every": 2},
        },
        {
            **{"backbone": "bert4rec", "loss": "gbce", "table_optimizer": "rowwise_adagrad"},
            **{"table_learning_rate": 0.05, "ema_decay": 0.9},
        },
    ],
)
@pytest.mark.parametrize("step", [4, 16, 22])
def test_a_crash_at_any_step_changes_nothing(
    tiny_log, undisturbed, tmp_path, at_step, saves_every, options, step
):
    config = small_config(**options)
    whole = outcome(undisturbed(config))
    saves_every(3)
    at_step(step, crash)
    with pytest.raises(CrashError):
        small_train(tiny_log, config, tmp_path / "run")
    assert 0 < newest(tmp_path / "run")["step"] < step
    small_train(tiny_log, config, tmp_path / "run")
    assert outcome(tmp_path / "run") == whole


def test_every_crash_in_a_row_is_survived(tiny_log, undisturbed, tmp_path, at_step, saves_every):
    whole = outcome(undisturbed(small_config()))
    saves_every(2)
    crashes = 0
    while True:
        at_step(6, crash)
        try:
            small_train(tiny_log, small_config(), tmp_path / "run")
            break
        except CrashError:
            crashes += 1
    assert crashes > 3
    assert outcome(tmp_path / "run") == whole


def test_resuming_goes_on_instead_of_beginning(tiny_log, tmp_path, at_step, saves_every):
    saves_every(3)
    at_step(17, crash)
    with pytest.raises(CrashError):
        small_train(tiny_log, small_config(), tmp_path / "run")
    done, taken = newest(tmp_path / "run")["step"], []
    at_step(1, lambda: taken.append(newest(tmp_path / "run")["step"]))
    total = small_train(tiny_log, small_config(), tmp_path / "run").steps
    assert taken == [done]
    assert total > done == 14


def test_before_the_first_checkpoint_training_begins_afresh(
    tiny_log, undisturbed, tmp_path, at_step
):
    whole = outcome(undisturbed(small_config()))
    at_step(2, crash)
    with pytest.raises(CrashError):
        small_train(tiny_log, small_config(), tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
    small_train(tiny_log, small_config(), tmp_path / "run", resume="never")
    assert outcome(tmp_path / "run") == whole


def test_a_damaged_newest_checkpoint_costs_time_but_no_accuracy(
    tiny_log, undisturbed, tmp_path, at_step, saves_every
):
    whole = outcome(undisturbed(small_config()))
    saves_every(4)
    at_step(21, crash)
    with pytest.raises(CrashError):
        small_train(tiny_log, small_config(), tmp_path / "run")
    last = max((tmp_path / "run" / "checkpoints").glob("step-*")) / "tensors.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    (tmp_path / "run" / "model.safetensors").write_bytes(b"damaged as well")
    with pytest.warns(UserWarning, match="damaged"):
        small_train(tiny_log, small_config(), tmp_path / "run")
    assert outcome(tmp_path / "run") == whole


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_of_the_very_step(
    tiny_log, undisturbed, tmp_path, at_step, signum
):
    whole = outcome(undisturbed(small_config()))
    before = signal.getsignal(signum)
    at_step(14, lambda: os.kill(os.getpid(), signum))
    with pytest.raises(TrainingInterrupted) as stop:
        small_train(tiny_log, small_config(), tmp_path / "run")
    assert stop.value.signum == signum
    assert signal.getsignal(signum) is before
    assert newest(tmp_path / "run")["step"] == 14
    small_train(tiny_log, small_config(), tmp_path / "run")
    assert outcome(tmp_path / "run") == whole


def test_finished_training_returns_its_result_at_once(tiny_log, tmp_path, at_step):
    first = small_train(tiny_log, small_config(), tmp_path / "run")
    before = outcome(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"damaged")
    at_step(1, crash)
    assert small_train(tiny_log, small_config(), tmp_path / "run") == first
    assert outcome(tmp_path / "run") == before


def test_more_epochs_go_on_from_the_last(tiny_log, undisturbed, tmp_path):
    # A warm-up that is less than a tenth of either.
    whole = outcome(undisturbed(small_config(epochs=4, warmup_steps=2)))
    small_train(tiny_log, small_config(epochs=2, warmup_steps=2), tmp_path / "run")
    small_train(tiny_log, small_config(epochs=4, warmup_steps=2), tmp_path / "run")
    assert outcome(tmp_path / "run") == whole


def test_more_patience_goes_on_after_an_early_stop(tiny_log, tmp_path):
    still = {"learning_rate": 0.0, "epochs": 5}
    first = small_train(tiny_log, small_config(patience=1, **still), tmp_path / "run")
    second = small_train(tiny_log, small_config(patience=3, **still), tmp_path / "run")
    assert [(r.stopped, r.epochs) for r in (first, second)] == [("early", 2), ("early", 4)]


def test_never_refuses_a_folder_with_checkpoints(tiny_log, tmp_path):
    small_train(tiny_log, small_config(epochs=1), tmp_path / "run", resume="never")
    before = outcome(tmp_path / "run")
    with pytest.raises(RunError, match="already holds checkpoints") as error:
        small_train(tiny_log, small_config(epochs=1), tmp_path / "run", resume="never")
    assert str(tmp_path / "run") in str(error.value)
    assert outcome(tmp_path / "run") == before


def test_resume_is_auto_or_never(tiny_log, tmp_path):
    with pytest.raises(ConfigError, match="resume is 'yes'"):
        small_train(tiny_log, small_config(), tmp_path / "run", resume="yes")
    assert not (tmp_path / "run").exists()


def test_a_run_tells_its_options_where_there_is_something_to_go_on_from(tiny_log, tmp_path):
    run = tmp_path / "run"
    assert stored_options(run) == {}
    config = small_config(epochs=1, dropout=0.3)
    small_train(tiny_log, config, run)
    assert from_dict(stored_options(run)) == config
    shutil.rmtree(run / "checkpoints")
    assert stored_options(run) == {}


def test_a_second_training_in_the_same_folder_is_refused_and_the_first_ends_well(
    tiny_log, undisturbed, tmp_path, at_step
):
    run, refused = tmp_path / "run", []

    def another():
        words = f"written by process {os.getpid()} on"
        # Both draw from the generators of this process.
        with pytest.raises(RunError, match=words) as error, seeded(0):
            small_train(tiny_log, small_config(), run)
        refused.append(error)

    at_step(20, another)
    small_train(tiny_log, small_config(), run)
    assert len(refused) == 1
    assert outcome(run) == outcome(undisturbed(small_config()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"learning_rate": 0.25}, r"training\.learning_rate is 0\.25, but .* with 0\.005"),
        ({"dropout": 0.5}, r"model\.dropout is 0\.5, but .* with 0\.2"),
        ({"seed": 9}, r"training\.seed is 9, but .* with 0"),
    ],
)
def test_another_configuration_is_named_with_both_values(tiny_log, tmp_path, options, message):
    run = tmp_path / "run"
    small_train(tiny_log, small_config(epochs=1), run)
    before = (run / "config.json").read_bytes(), outcome(run)
    with pytest.raises(ConfigError, match=message):
        small_train(tiny_log, small_config(epochs=1, **options), run)
    assert ((run / "config.json").read_bytes(), outcome(run)) == before


def test_another_vocabulary_is_refused(tiny_log, repeat_log, tmp_path):
    small_train(tiny_log, small_config(epochs=1), tmp_path / "run")
    with pytest.raises(RunError, match="another vocabulary"):
        small_train(repeat_log, small_config(epochs=1), tmp_path / "run")


@pytest.mark.parametrize("change", ["times", "order"])
def test_the_same_items_with_other_events_are_refused(tiny_events, tiny_log, tmp_path, change):
    run = tmp_path / "run"
    small_train(tiny_log, small_config(epochs=1), run)
    before = (run / "config.json").read_bytes(), outcome(run)
    if change == "times":
        events, words = tiny_events.with_columns(pl.col("timestamp") + 1), r"\(times\)"
    else:
        events = tiny_events.with_columns(-pl.col("timestamp"))
        words = r"\(items of the events, times\)"
    other = EventLog.prepare(events)
    with pytest.raises(RunError, match=f"{run} was trained on other data {words}: choose another"):
        small_train(other, small_config(epochs=1), run)
    assert ((run / "config.json").read_bytes(), outcome(run)) == before


def test_the_same_events_prepared_again_are_gone_on_with(tiny_events, tiny_log, tmp_path):
    first = small_train(tiny_log, small_config(epochs=1), tmp_path / "run")
    assert small_train(EventLog.prepare(tiny_events), small_config(epochs=1), tmp_path / "run") == (
        first
    )


def rewrite_identity(run: Path, change) -> None:
    """Change what the newest checkpoint tells of its training, with the digest it must have."""
    path = max((run / "checkpoints").glob("step-*")) / "state.json"
    content = json.loads(path.read_text())["content"]
    content["state"]["identity"] = change(content["state"]["identity"])
    path.write_text(json.dumps({"sha256": _content_digest(content), "content": content}))


def test_a_run_of_before_there_were_identities_goes_on_with_a_warning(tiny_log, tmp_path):
    run = tmp_path / "run"
    first = small_train(tiny_log, small_config(epochs=1), run)
    counts = ("users", "events", "training events", "validation cases")

    def older(known):
        data = {name: known["data"][name] for name in counts}
        return {**known, "data": data | {"vocabulary": tiny_log.item_vocabulary.fingerprint}}

    rewrite_identity(run, older)
    with pytest.warns(UserWarning, match="begun before logs had an identity"):
        assert small_train(tiny_log, small_config(epochs=1), run) == first
    rewrite_identity(run, lambda known: {**known, "data": known["data"] | {"events": 7}})
    with pytest.raises(RunError, match=r"other data \(events: 7, now 1830\)"):
        small_train(tiny_log, small_config(epochs=1), run)


LATER = {
    "model": (
        *("time_gap", "request_time", "event_kinds", "request_kind"),
        *("context", "user_table", "repeats"),
    ),
    "training": ("targets", "weights"),
    "evaluation": ("kinds",),
}


def test_a_run_of_before_there_were_kinds_and_weights_goes_on(tiny_events, tmp_path):
    log = EventLog.prepare(tiny_events.with_columns(w=pl.int_range(pl.len()) % 3), weight="w")
    run, config = tmp_path / "run", small_config(epochs=1, weights="off")
    first = small_train(log, config, run)

    def older(known):
        told = {
            section: {name: one for name, one in values.items() if name not in LATER[section]}
            for section, values in known["config"].items()
        }
        return {**known, "config": told}

    rewrite_identity(run, older)
    described = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(older(described)))
    assert stored_options(run)["training"]["weights"] == "off"
    assert small_train(log, config, run) == first
    with pytest.raises(ConfigError, match=r"weights is 'auto', but .* was begun with 'off'"):
        small_train(log, small_config(epochs=1), run)


@pytest.mark.parametrize("identity", [None, [], {}, {"data": None, "config": {}}])
def test_a_checkpoint_that_does_not_tell_its_training_is_refused(tiny_log, tmp_path, identity):
    small_train(tiny_log, small_config(epochs=1), tmp_path / "run")
    rewrite_identity(tmp_path / "run", lambda known: identity)
    with pytest.raises(RunError, match="does not tell of which training it is: it is damaged"):
        small_train(tiny_log, small_config(epochs=1), tmp_path / "run")


def test_another_split_of_the_same_log_is_refused(tiny_log, split, tmp_path):
    config = small_config(epochs=1)
    small_train(tiny_log, config, tmp_path / "run")
    other = Split((split.train_end - 1).clip(1), split.valid, split.test)
    model = build_model(config.model, tiny_log.num_items)
    with pytest.raises(RunError, match=r"other data \(training events"):
        train(model, tiny_log, other, config, tmp_path / "run", progress=False)


def test_checkpoints_hold_no_pickle(tiny_log, tmp_path):
    small_train(tiny_log, small_config(epochs=1), tmp_path / "run")
    found = Checkpoints(tmp_path / "run" / "checkpoints").newest()
    kinds = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert kinds == {".json", ".jsonl", ".safetensors", ".npy"}
    for path in (tmp_path / "run").rglob("*.npy"):
        np.load(path, allow_pickle=False)
    assert {name.split(".")[0] for name in found.tensors} == {"model", "optimizer", "random"}
