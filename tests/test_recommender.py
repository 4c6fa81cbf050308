import copy
import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import warnings

import polars as pl
import pytest
import torch

from blossomrec.config import EvaluationConfig, ModelConfig, RunConfig, TrainingConfig, with_options
from blossomrec.data.log import EventLog
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError, DataError, RunError
from blossomrec.recommender import BlossomRec
from blossomrec.training import TrainingInterrupted, trainer
from small_options import SMALL

COLUMNS = ["user_id", "item_id", "score", "rank"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def fitted(tiny_log, tmp_path_factory):
    """A recommender whose scores tell items apart, with its run folder. Read only."""
    run = tmp_path_factory.mktemp("fitted") / "run"
    return BlossomRec(**SMALL | {"epochs": 3}).fit(tiny_log, run, progress=False), run


@pytest.fixture(scope="module")
def recommender(fitted):
    return fitted[0]


def test_what_was_saved_recommends_the_same(recommender, tiny_log, tmp_path):
    folder = tmp_path / "new" / "saved"
    recommender.save_pretrained(folder)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = [f"vocabulary/{one}.npy" for one in ("ids", "keys", "rows")]
    assert files == ["config.json", "model.safetensors", *names, "vocabulary/vocabulary.json"]
    description = json.loads((folder / "config.json").read_text())
    assert description["num_items"] == 80
    assert description["config"]["model"]["max_len"] == 20
    frame = recommender.recommend(k=4)
    for log in (None, tiny_log, tiny_log.folder, str(tiny_log.folder)):
        again = BlossomRec.from_pretrained(folder, log)
        assert again.config == recommender.config
        assert again.recommend(k=4).equals(frame)
    history = [50_003, 50_010]
    assert again.recommend_history(history).equals(recommender.recommend_history(history))
    assert again.similar_items(history).equals(recommender.similar_items(history))


def test_a_run_folder_is_a_pretrained_model_too(fitted):
    recommender, run = fitted
    again = BlossomRec.from_pretrained(run)
    assert again.recommend(k=2).equals(recommender.recommend(k=2))


def test_without_its_log_a_model_still_knows_histories(recommender, tmp_path):
    folder = tmp_path / "saved"
    recommender.save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"data": str(tmp_path / "gone")}))
    alone = BlossomRec.from_pretrained(folder)
    assert alone.log is None
    history = [50_003, 50_010]
    assert alone.recommend_history(history).equals(recommender.recommend_history(history))
    for users in (None, [1001]):
        with pytest.raises(RunError, match=r"the log .* trained on is not there .*gone is not"):
            alone.recommend(users)
    alone.save_pretrained(tmp_path / "again")
    again = BlossomRec.from_pretrained(tmp_path / "again")
    assert again.recommend_history(history).equals(recommender.recommend_history(history))
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == values | {
        "data": str(tmp_path / "gone")
    }


def test_training_on_another_vocabulary_is_refused(fitted, repeat_log):
    with pytest.raises(RunError, match="another vocabulary"):
        BlossomRec(**SMALL).fit(repeat_log, fitted[1], progress=False)


def test_a_model_takes_the_place_of_one_that_was_saved(recommender, repeat_log, tmp_path):
    other = BlossomRec(**SMALL).fit(repeat_log, progress=False)
    other.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    recommender.save_pretrained(tmp_path / "saved")
    again = BlossomRec.from_pretrained(tmp_path / "saved")
    assert again.recommend(k=2).equals(recommender.recommend(k=2))
    assert (tmp_path / "saved" / "notes.txt").read_text() == "mine"


def test_a_training_is_overwritten_only_where_asked_for(recommender, repeat_log, tmp_path):
    run = tmp_path / "run"
    BlossomRec(**SMALL).fit(repeat_log, run, progress=False)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"run folder of another model \(it holds checkpoints, log"):
        recommender.save_pretrained(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    recommender.save_pretrained(run, overwrite=True)
    assert BlossomRec.from_pretrained(run).recommend(k=2).equals(recommender.recommend(k=2))
    assert sorted(os.listdir(run)) == ["config.json", "model.safetensors", "vocabulary"]


def test_a_model_is_not_saved_over_what_is_none(recommender, tmp_path):
    for name, words in (("config.json", "has format None"), ("log.json", "is a prepared log")):
        folder = tmp_path / name.removesuffix(".json")
        folder.mkdir()
        (folder / name).write_text('{"mine": 1}')
        with pytest.raises(RunError, match=words):
            recommender.save_pretrained(folder)
        assert [path.name for path in folder.iterdir()] == [name]
        assert (folder / name).read_text() == '{"mine": 1}'


@pytest.mark.parametrize("name", ["model.safetensors", "ids.npy", "vocabulary.json"])
def test_saving_that_breaks_off_leaves_no_mixed_model(
    recommender, repeat_log, tmp_path, monkeypatch, name
):
    other = BlossomRec(**SMALL).fit(repeat_log, progress=False)
    other.save_pretrained(tmp_path)
    replace = os.replace

    def breaking(source, target):
        if str(target).endswith(name):
            raise OSError("the end")
        replace(source, target)

    monkeypatch.setattr(os, "replace", breaking)
    with pytest.raises(OSError, match="the end"):
        recommender.save_pretrained(tmp_path)
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"config\.json is missing"):
        BlossomRec.from_pretrained(tmp_path)
    recommender.save_pretrained(tmp_path)
    assert BlossomRec.from_pretrained(tmp_path).recommend(k=1).height == 60


class TestAnyLog:
    """A model and a log that was not its own, or is no longer."""

    def test_a_log_prepared_again_gives_the_histories_of_today(
        self, tiny_events, recommender, tmp_path
    ):
        old = EventLog.prepare(tiny_events, tmp_path / "log")
        BlossomRec(**SMALL).fit(old, tmp_path / "run", progress=False)
        new = pl.DataFrame(
            {
                "user_id": [1001, 1001, 7, 7],
                "item_id": [50_010, 5, 50_003, 50_010],
                "timestamp": [1, 2, 3, 4],
            }
        )
        EventLog.prepare(new, tmp_path / "log")
        model = BlossomRec.from_pretrained(tmp_path / "run")
        assert model.recommend_history([50_003]).height == 10
        with pytest.warns(
            UserWarning, match="1 of 2 events of these users are of items that .*: 5$"
        ):
            frame = model.recommend([1001], 3)
        assert frame.drop("user_id", "score").equals(
            model.recommend_history([50_010], 3).drop("score")
        )
        # Who has met nothing that is unknown is told nothing.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            frame = model.recommend([7], 3)
        both = model.recommend_history([50_003, 50_010], 3)
        assert frame.drop("user_id", "score").equals(both.drop("score"))

    def test_ids_of_another_type_meet(self, tiny_events, fitted):
        text = tiny_events.with_columns(pl.col("user_id", "item_id").cast(pl.String))
        recommender, run = fitted
        other = BlossomRec.from_pretrained(run, EventLog.prepare(text))
        expected = recommender.recommend([1001, 1004], 4)
        frame = other.recommend(["1001", "1004"], 4)
        assert frame["item_id"].equals(expected["item_id"])
        assert frame["user_id"].to_list() == expected["user_id"].cast(pl.String).to_list()

    def test_users_without_a_known_item_get_nothing(self, fitted, repeat_log):
        recommender = BlossomRec.from_pretrained(fitted[1])
        strange = pl.DataFrame(
            {"user_id": [1, 1, 2, 2], "item_id": [5, 6, 50_003, 7], "timestamp": [1, 2, 3, 4]}
        )
        recommender.log = EventLog.prepare(strange)
        with pytest.warns(UserWarning, match="3 of 4 events .*: 5, 6, 7$"):
            frame = recommender.recommend(k=2)
        assert frame["user_id"].to_list() == [2, 2]
        with pytest.warns(UserWarning, match="2 of 2 events .*: 5, 6$"):
            empty = recommender.recommend([1], 2)
        assert empty.schema == frame.schema and empty.height == 0

    def test_many_unknown_items_are_counted(self, fitted):
        items = list(range(1, 9)) * 2
        log = EventLog.prepare(
            pl.DataFrame({"user_id": [1] * 8 + [2] * 8, "item_id": items, "timestamp": items})
        )
        recommender = BlossomRec.from_pretrained(fitted[1], log)
        with pytest.warns(UserWarning, match="16 of 16 .*: 1, 2, 3, 4, 5 and 3 more$"):
            assert recommender.recommend().height == 0

    @pytest.mark.parametrize("damage", ["items", "log.json", "all"])
    def test_a_damaged_log_stops_only_what_needs_it(self, tiny_events, tmp_path, damage):
        EventLog.prepare(tiny_events, tmp_path / "log")
        log = EventLog.open(tmp_path / "log")
        BlossomRec(**SMALL).fit(log, tmp_path / "run", progress=False)
        if damage == "all":
            shutil.rmtree(tmp_path / "log")
        elif damage == "items":
            shutil.rmtree(tmp_path / "log" / "items")
        else:
            (tmp_path / "log" / "log.json").write_text("{")
        model = BlossomRec.from_pretrained(tmp_path / "run")
        assert model.recommend_history([50_003]).height == 10
        with pytest.raises(RunError, match=r"is not there .*give one, or use recommend_history"):
            model.recommend([1001])
        with pytest.raises(DataError):
            BlossomRec.from_pretrained(tmp_path / "run", tmp_path / "log")


class TestPickle:
    @pytest.fixture
    def kept(self, tiny_events, tmp_path):
        log = EventLog.prepare(tiny_events, tmp_path / "log")
        return BlossomRec(**SMALL).fit(log, progress=False)

    def test_another_process_gets_the_same_answers(self, kept, tmp_path):
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(kept))
        code = (
            "import pickle, sys\n"
            f"model = pickle.load(open({str(tmp_path / 'model.pkl')!r}, 'rb'))\n"
            f"model.save_pretrained({str(tmp_path / 'saved')!r})\n"
            "print(model.recommend([1001], 3).rows())\n"
            "print(model.recommend_history([50_003], 3).rows())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        frames = (kept.recommend([1001], 3), kept.recommend_history([50_003], 3))
        assert done.stdout.splitlines() == [str(frame.rows()) for frame in frames]
        assert BlossomRec.from_pretrained(tmp_path / "saved").items.size == 80

    def test_without_its_log_it_still_knows_histories(self, kept, tmp_path):
        content = pickle.dumps(kept)
        shutil.rmtree(tmp_path / "log")
        again = pickle.loads(content)
        assert again.recommend_history([50_003]).equals(kept.recommend_history([50_003]))
        with pytest.raises(RunError, match="the log this model was trained on is not there"):
            again.recommend([1001])

    def test_a_temporary_log_is_refused_with_advice(self, tiny_events):
        model = BlossomRec(**SMALL).fit(tiny_events, progress=False)
        with pytest.raises(RunError, match=r"save_pretrained, or .*EventLog\.prepare"):
            pickle.dumps(model)

    def test_a_deep_copy_outlives_its_model(self, tiny_events):
        model = BlossomRec(**SMALL).fit(tiny_events, progress=False)
        expected = model.recommend([1001], 3)
        twin, folder = copy.deepcopy(model), model.log.folder
        del model
        assert twin.recommend([1001], 3).equals(expected)
        weight = twin.model.item_embeddings.weight
        assert copy.deepcopy(twin).model.item_embeddings.weight is not weight
        assert copy.copy(twin).model.item_embeddings.weight is weight
        del twin
        gc.collect()
        assert not folder.exists()

    def test_what_is_not_fitted_is_pickled_too(self):
        assert pickle.loads(pickle.dumps(BlossomRec(**SMALL))).config.model.max_len == 20


def test_a_vocabulary_of_another_model_is_refused(recommender, repeat_log, tmp_path):
    recommender.save_pretrained(tmp_path)
    repeat_log.item_vocabulary.save(tmp_path / "vocabulary")
    with pytest.raises(RunError, match=r"vocabulary/ does not belong to config\.json"):
        BlossomRec.from_pretrained(tmp_path)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"config\.json is missing") as error:
        BlossomRec.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_options_by_name_override_the_configuration():
    config = RunConfig(ModelConfig(max_len=50, dropout=0.1), TrainingConfig(epochs=3))
    changed = BlossomRec(config, max_len=500, epochs=20, ks=(1,), seed=7).config
    assert changed == RunConfig(
        ModelConfig(max_len=500, dropout=0.1),
        TrainingConfig(epochs=20, seed=7),
        EvaluationConfig(ks=(1,)),
    )
    assert BlossomRec().config == RunConfig()
    assert with_options(config, {}) == config


@pytest.mark.parametrize(
    "options, words",
    [
        ({"max_length": 50}, "unknown option max_length"),
        ({"max_len": 1}, "model.max_len is 1: it must be at least 2"),
        ({"epochs": "3"}, "training.epochs is '3': a whole number is needed"),
        ({"ranking": "all"}, "evaluation.ranking is 'all': choose one of full, uni100"),
        ({"heads": 3}, "model.hidden_size is 128: it must be a multiple of heads, 3"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ConfigError) as error:
        BlossomRec(**options)
    assert str(error.value) == words


def test_before_fitting_everything_says_so(tmp_path):
    new = BlossomRec(**SMALL)
    for ask in (
        new.recommend,
        lambda: new.recommend_history([1]),
        lambda: new.similar_items([1]),
        lambda: new.save_pretrained(tmp_path / "saved"),
    ):
        with pytest.raises(RunError, match="not been fitted: call fit or from_pretrained"):
            ask()
    assert not (tmp_path / "saved").exists()


def test_a_frame_a_file_and_a_log_give_the_same(tiny_events, tiny_log, tmp_path):
    tiny_events.write_parquet(tmp_path / "events.parquet")
    tiny_events.write_csv(tmp_path / "events.csv")
    sources = (tiny_log, tiny_events, tmp_path / "events.parquet", str(tmp_path / "events.csv"))
    frames = []
    for source in sources:
        recommender = BlossomRec(**SMALL)
        assert recommender.fit(source, progress=False) is recommender
        assert recommender.training.epochs == 1
        frames.append(recommender.recommend(k=3))
    assert all(frame.equals(frames[0]) for frame in frames)


@pytest.mark.parametrize(
    "cast",
    [
        pytest.param(lambda ids: ids.cast(pl.String).str.pad_start(9, "0"), id="padded strings"),
        pytest.param(lambda ids: pl.concat_str(ids, pl.lit(" é]")), id="any strings"),
        pytest.param(lambda ids: ids + 2**62, id="large integers"),
        pytest.param(lambda ids: ids.cast(pl.UInt64) + 2**63, id="unsigned integers"),
    ],
)
def test_ids_come_back_as_they_were(tiny_events, cast):
    events = tiny_events.with_columns(cast(pl.col("user_id")), cast(pl.col("item_id")))
    recommender = BlossomRec(**SMALL).fit(events, progress=False)
    frame = recommender.recommend(k=2)
    for name in ("user_id", "item_id"):
        assert frame[name].dtype == events[name].dtype
        assert set(frame[name]) <= set(events[name])
    assert frame["user_id"].n_unique() == 60
    user = events["user_id"][0]
    own = events.filter(pl.col("user_id") == user).sort("timestamp", maintain_order=True)
    history = own["item_id"].to_list()
    first = recommender.recommend([user], 2)
    assert recommender.recommend_history(history, 2)["item_id"].equals(first["item_id"])
    typed = recommender.recommend_history([str(one) for one in history], 2)
    assert typed["item_id"].equals(first["item_id"])


@pytest.mark.parametrize("options", [{"backbone": "bert4rec"}, {"backbone": "gru4rec"}])
def test_other_backbones_recommend_too(tiny_log, options, tmp_path):
    recommender = BlossomRec(**SMALL | options).fit(tiny_log, tmp_path / "run", progress=False)
    frame = recommender.recommend(k=3)
    assert frame.group_by("user_id").len()["len"].to_list() == [3] * 60
    again = BlossomRec.from_pretrained(tmp_path / "run")
    assert again.recommend(k=3).equals(frame)


def test_fitting_goes_on_where_it_was_stopped(tiny_log, tmp_path, monkeypatch):
    options = SMALL | {"epochs": 2}
    whole = BlossomRec(**options).fit(tiny_log, tmp_path / "whole", progress=False)
    steps, seen = trainer.device_steps, []

    def stopping(*arguments):
        for step in steps(*arguments):
            seen.append(step)
            if len(seen) == 9:
                os.kill(os.getpid(), signal.SIGTERM)
            yield step

    monkeypatch.setattr(trainer, "device_steps", stopping)
    stopped = BlossomRec(**options)
    with pytest.raises(TrainingInterrupted):
        stopped.fit(tiny_log, tmp_path / "stopped", progress=False)
    with pytest.raises(RunError, match="not been fitted"):
        stopped.recommend()
    with pytest.raises(RunError, match="already holds checkpoints"):
        stopped.fit(tiny_log, tmp_path / "stopped", resume="never", progress=False)
    before = len(seen)
    stopped.fit(tiny_log, tmp_path / "stopped", progress=False)
    assert len(seen) - before == whole.training.steps - before > 0
    weights = stopped.model.state_dict()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(weights[name], value), name
    assert stopped.training.validation == whole.training.validation
    assert stopped.recommend(k=3).equals(whole.recommend(k=3))


def test_a_device_that_is_not_there_is_named(fitted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="device is 'cuda': torch finds no CUDA device here"):
        BlossomRec.from_pretrained(fitted[1], device="cuda")
    with pytest.raises(ConfigError, match="device is 'tpu': choose one of auto, cpu, cuda"):
        BlossomRec.from_pretrained(fitted[1], device="tpu")


def test_a_log_prepared_from_events_lives_as_long_as_the_recommender(tiny_events):
    recommender = BlossomRec(**SMALL).fit(tiny_events, progress=False)
    assert isinstance(recommender.log, EventLog)
    assert recommender.log.folder.is_dir()
    assert recommender.recommend(k=1).height == 60
