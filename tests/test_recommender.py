import json
import os
import signal

import polars as pl
import pytest
import torch

from blossomrec.config import EvaluationConfig, ModelConfig, RunConfig, TrainingConfig
from blossomrec.data.log import EventLog
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError, RunError
from blossomrec.recommender import BlossomRec, with_options
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
    names = ["config.json", "model.safetensors", "vocabulary/ids.parquet"]
    assert files == [*names, "vocabulary/vocabulary.json"]
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
        with pytest.raises(RunError, match="the log this model was trained on is not there"):
            alone.recommend(users)


def test_a_log_of_another_vocabulary_is_refused(fitted, tiny_log, repeat_log, tmp_path):
    recommender, run = fitted
    with pytest.raises(RunError, match="another vocabulary") as error:
        BlossomRec.from_pretrained(run, repeat_log)
    assert str(run) in str(error.value) and str(repeat_log.folder) in str(error.value)
    with pytest.raises(RunError, match="another vocabulary"):
        BlossomRec(**SMALL).fit(repeat_log, run, progress=False)
    other = BlossomRec(**SMALL).fit(repeat_log, progress=False)
    other.save_pretrained(tmp_path / "saved")
    with pytest.raises(RunError, match="another vocabulary"):
        recommender.save_pretrained(tmp_path / "saved")
    assert BlossomRec.from_pretrained(tmp_path / "saved").items.size == repeat_log.num_items


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
