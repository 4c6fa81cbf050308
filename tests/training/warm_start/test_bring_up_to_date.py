"""A run that is brought up to date as a whole: better, resumable, and told of its ancestor."""

import json
import shutil

import numpy as np
import pytest
from small_training import CrashError, crash, logged, outcome, small_config, small_train
from two_periods import SIMULATED

from blossomrec.errors import ConfigError, DataError, RunError
from blossomrec.files import digest
from blossomrec.recommender import BlossomRec
from blossomrec.run.description import read_run_config
from blossomrec.run.weights import read_weights
from blossomrec.training import trainer
from blossomrec.training.checkpoint import Pace
from blossomrec.training.warm_start.seen import seen_events

CONFIG = {"ema_decay": 0.9}


@pytest.fixture
def saves_every_third(monkeypatch):
    asked = [0]

    def due(pace):
        asked[0] += 1
        return asked[0] % 3 == 0

    monkeypatch.setattr(Pace, "due", due)


@pytest.fixture(scope="module")
def undisturbed(old_run, both_log, tmp_path_factory):
    run = tmp_path_factory.mktemp("updated") / "run"
    small_train(both_log, small_config(**CONFIG), run, ancestor=old_run)
    return run


def test_an_update_beats_the_run_on_the_events_of_the_second_period(simulated, tmp_path):
    config = small_config(**SIMULATED | {"epochs": 3})
    still = small_config(**SIMULATED | {"epochs": 1, "learning_rate": 0.0})
    small_train(simulated.both, still, tmp_path / "stale", ancestor=simulated.run)
    result = small_train(simulated.both, config, tmp_path / "new", ancestor=simulated.run)
    stale, new = (
        BlossomRec.from_pretrained(tmp_path / name, simulated.both).evaluate()
        for name in ("stale", "new")
    )
    assert result.best_epoch > 0
    assert new.metrics["ndcg@10"] > 1.1 * stale.metrics["ndcg@10"] > 0
    # What it was trained on before is not lost.
    before = BlossomRec.from_pretrained(simulated.run).evaluate().metrics["ndcg@10"]
    assert new.metrics["ndcg@10"] > 0.8 * before


def test_a_run_that_got_no_better_has_not_learned_what_is_new(simulated, tmp_path):
    log = simulated.both
    seen = {}
    for rate in (0.0, 5e-3):
        config = small_config(**SIMULATED | {"epochs": 2, "learning_rate": rate})
        result = small_train(log, config, tmp_path / str(rate), ancestor=simulated.run)
        assert (result.best_epoch == 0) == (rate == 0.0)
        ends = np.diff(log.offsets)
        seen[rate] = seen_events(tmp_path / str(rate), log, ends)
    assert np.array_equal(seen[0.0], seen_events(simulated.run, log, np.diff(log.offsets)))
    assert (seen[5e-3] >= seen[0.0]).all() and (seen[5e-3] > seen[0.0]).any()


def test_a_run_tells_what_it_began_as(old_run, undisturbed, both_log):
    told = read_run_config(undisturbed).ancestor
    assert told == {
        "run": str(old_run.resolve()),
        "weights": digest(old_run / "model.safetensors"),
        "items_kept": both_log.num_items - 9,
        "items_new": 9,
        "moments": True,
    }
    assert read_run_config(old_run).ancestor is None


def test_the_first_lines_tell_it_too(old_run, both_log, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    config = small_config(epochs=1, **CONFIG)
    small_train(both_log, config, tmp_path / "run", ancestor=old_run, progress=True)
    shown = capsys.readouterr().err
    kept = both_log.num_items - 9
    assert f"from: {old_run}, {kept} items kept, 9 new, moments kept" in shown
    assert "new items begin by their events: 9, by content: 0, as rare ones: 0" in shown
    assert "before training: ndcg@10 0." in shown and "new, 90% replay" in shown


@pytest.mark.parametrize("step", [1, 2, 7, 12])
def test_a_crash_at_any_step_changes_nothing_and_needs_no_ancestor_any_more(
    both_log, old_run, undisturbed, tmp_path, at_step, saves_every_third, step
):
    ancestor = tmp_path / "old"
    shutil.copytree(old_run, ancestor)
    at_step(step, crash)
    with pytest.raises(CrashError):
        small_train(both_log, small_config(**CONFIG), tmp_path / "run", ancestor=ancestor)
    shutil.rmtree(ancestor)
    small_train(both_log, small_config(**CONFIG), tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(undisturbed)


def test_broken_off_before_the_first_checkpoint_it_begins_as_the_run_again(
    both_log, old_run, undisturbed, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        patched.setattr(trainer.Trainer, "_keep_start", lambda self: crash())
        with pytest.raises(CrashError):
            small_train(both_log, small_config(**CONFIG), tmp_path / "run", ancestor=old_run)
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))
    small_train(both_log, small_config(**CONFIG), tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(undisturbed)


def test_the_run_that_is_brought_up_to_date_stays_as_it_is(both_log, old_run, tmp_path):
    def content():
        return {path: path.read_bytes() for path in old_run.rglob("*") if path.is_file()}

    before = content()
    small_train(both_log, small_config(epochs=1, **CONFIG), tmp_path / "run", ancestor=old_run)
    assert content() == before


def test_where_nothing_is_better_the_weights_to_begin_with_are_kept(both_log, old_run, tmp_path):
    worse = small_config(learning_rate=3.0, clip_norm=0.0, patience=1, **CONFIG)
    result = small_train(both_log, worse, tmp_path / "run", ancestor=old_run)
    assert (result.best_epoch, result.stopped) == (0, "early")
    found = read_weights(tmp_path / "run" / "model.safetensors")
    theirs = read_weights(old_run / "model.safetensors")
    for name, value in theirs.items():
        if name != "item_embeddings.weight":
            assert np.array_equal(found[name], value)
    assert result.validation["ndcg@10"] > logged(tmp_path / "run")[0]["validation"]["ndcg@10"]


def test_an_update_of_an_update_goes_on_from_what_that_saw(both_log, undisturbed, tmp_path):
    seen = seen_events(undisturbed, both_log, np.diff(both_log.offsets))
    assert seen.sum() > 0
    with pytest.raises(DataError, match="no training event that the run was not trained on"):
        small_train(both_log, small_config(**CONFIG), tmp_path / "run", ancestor=undisturbed)
    everything = small_config(events="all", epochs=1, **CONFIG)
    small_train(both_log, everything, tmp_path / "run", ancestor=undisturbed)
    assert read_run_config(tmp_path / "run").ancestor["items_new"] == 0


def test_all_events_are_trained_on_where_that_is_asked_for(both_log, old_run, tmp_path, capsys):
    config = small_config(events="all", epochs=1, **CONFIG)
    small_train(both_log, config, tmp_path / "run", ancestor=old_run, progress=True)
    assert "replay" not in capsys.readouterr().err
    small_train(both_log, small_config(epochs=1), tmp_path / "plain")
    steps = [logged(tmp_path / name)[0]["step"] for name in ("run", "plain")]
    assert steps[0] == steps[1]


def test_other_runs_are_refused(both_log, first_log, old_run, undisturbed, tmp_path):
    config, run = small_config(**CONFIG), tmp_path / "run"
    with pytest.raises(RunError, match="in its own folder"):
        small_train(first_log, config, old_run, ancestor=old_run)
    with pytest.raises(RunError, match="is not a run folder"):
        small_train(both_log, config, run, ancestor=tmp_path / "none")
    with pytest.raises(ConfigError, match=r"model\.hidden_size is 32, but .* has 16"):
        small_train(both_log, small_config(hidden_size=32), run, ancestor=old_run)
    assert not run.exists()
    other = tmp_path / "other"
    small_train(first_log, small_config(epochs=1), other)
    with pytest.raises(RunError, match=r"was begun from .* as it was then, not from .*other"):
        small_train(both_log, config, undisturbed, ancestor=other)
    with pytest.raises(RunError, match="was begun by itself, not from"):
        small_train(first_log, small_config(epochs=1), other, ancestor=old_run)


def test_a_run_without_weights_is_refused(both_log, old_run, tmp_path):
    shutil.copytree(old_run, tmp_path / "old", ignore=shutil.ignore_patterns("model.*"))
    with pytest.raises(RunError, match="has no weights yet"):
        small_train(both_log, small_config(), tmp_path / "run", ancestor=tmp_path / "old")


def test_minutes_end_training_with_the_step_it_is_at(both_log, old_run, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(trainer.time, "monotonic", lambda: now[0])
    steps = trainer.device_steps

    def slow(*arguments):
        for step in steps(*arguments):
            now[0] += 60.0
            yield step

    monkeypatch.setattr(trainer, "device_steps", slow)
    config = small_config(minutes=4.5, **CONFIG)
    result = small_train(both_log, config, tmp_path / "run", ancestor=old_run)
    assert (result.stopped, result.steps, result.epochs) == ("minutes", 5, 1)
    # What came of it is validated, and kept where it is better.
    assert logged(tmp_path / "run")[-1]["validation"]
    again = small_train(both_log, config, tmp_path / "run")
    assert again.steps == 5
    longer = small_config(minutes=6.5, **CONFIG)
    assert small_train(both_log, longer, tmp_path / "run").steps == 7


def test_minutes_that_are_over_before_a_step_leave_the_model_as_it_was(
    both_log, old_run, tmp_path, monkeypatch
):
    now = [0.0]
    validate = trainer.Trainer._keep_start

    def slow(self):
        validate(self)
        now[0] += 60.0

    monkeypatch.setattr(trainer.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(trainer.Trainer, "_keep_start", slow)
    result = small_train(
        both_log, small_config(minutes=0.5, **CONFIG), tmp_path / "run", ancestor=old_run
    )
    assert (result.stopped, result.steps, result.epochs, result.best_epoch) == ("minutes", 0, 0, 0)
    assert result.seconds_per_epoch == 0
    left = BlossomRec.from_pretrained(tmp_path / "run").recommend(k=1)
    assert left.height == both_log.num_users


def test_options_that_are_not_given_are_those_of_the_run(both_log, old_run, tmp_path):
    updated = BlossomRec(epochs=1, max_len=25).fit(
        both_log, tmp_path / "run", progress=False, from_run=old_run
    )
    known = read_run_config(old_run).config
    assert updated.config.training.tokens_per_batch == known.training.tokens_per_batch
    assert updated.config.model.hidden_size == 16
    assert (updated.config.model.max_len, updated.config.training.epochs) == (25, 1)
    assert updated.recommend(k=3).height == 3 * both_log.num_users
    with pytest.raises(ConfigError, match=r"model\.layers is 2"):
        BlossomRec(layers=2).fit(both_log, tmp_path / "other", from_run=old_run)


def test_a_run_that_sees_all_there_is_is_brought_up_to_date(seeing_run, both_tables, tmp_path):
    config = read_run_config(seeing_run).config
    small_train(both_tables, config, tmp_path / "run", ancestor=seeing_run)
    info = read_run_config(tmp_path / "run")
    # Numbers go on to be taken by the scale that they were learned with.
    (mean, theirs) = (
        next(one.mean for one in each.fields.context if one.name == "price")
        for each in (info, read_run_config(seeing_run))
    )
    assert mean == theirs
    loaded = BlossomRec.from_pretrained(tmp_path / "run", both_tables)
    validated = loaded.evaluate("valid").metrics["ndcg@10"]
    best = max(one["validation"]["ndcg@10"] for one in logged(tmp_path / "run"))
    assert validated == pytest.approx(best, abs=1e-6)


def test_the_command_line_goes_on_without_the_run(cli, both_log, old_run, tmp_path):
    run = tmp_path / "run"
    shown = cli("train", both_log.folder, run, "--from", old_run, "--training.epochs", 1)
    assert "best epoch" in shown
    info = read_run_config(run)
    assert info.ancestor["items_new"] == 9
    assert info.config.model == read_run_config(old_run).config.model
    assert info.config.training.epochs == 1
    flags = ("--resume", "auto", "--training.epochs", 2)
    cli("train", both_log.folder, run, *flags)
    assert len(logged(run)) == 2
    assert read_run_config(run).ancestor == info.ancestor
    assert json.loads((run / "config.json").read_text())["ancestor"]["run"] == str(old_run)
