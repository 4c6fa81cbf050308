"""What was measured is what is recommended: items of the history are in, or they are left out."""

import json

import polars as pl
import pytest

from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, RunError
from blossomrec.measure import evaluate_run
from blossomrec.recommender import BlossomRec
from blossomrec.run.description import read_run_config
from small_options import SMALL

pytestmark = pytest.mark.usefixtures("one_thread")


def train(log, run, **options):
    return BlossomRec(**SMALL | options).fit(log, run, progress=False)


@pytest.mark.parametrize("option", ["auto", "yes", "no"])
def test_recommending_follows_the_evaluation(tiny_log, repeat_log, tmp_path, option):
    for log in (tiny_log, repeat_log):
        run, saved = tmp_path / log.folder.parent.name, tmp_path / f"{log.folder.parent.name}-saved"
        fitted = train(log, run, filter_seen=option)
        measured = evaluate_run(run).protocol.filter_seen
        assert measured is {"yes": True, "no": False}.get(option, log is tiny_log)
        fitted.save_pretrained(saved)
        row = int((log.offsets[1:] - log.offsets[:-1]).argmax())
        user = log.user_vocabulary.ids([row]).to_list()
        history = log.item_vocabulary.ids(log.history(row).items).to_list()
        for model in (fitted, *map(BlossomRec.from_pretrained, (run, saved))):
            assert model.filter_viewed is measured
            for ask, of in ((model.recommend, user), (model.recommend_history, history)):
                usual, viewed, unviewed = (
                    ask(of, log.num_items, filter_viewed=one) for one in (None, False, True)
                )
                assert usual.equals(unviewed if measured else viewed)
                assert len(viewed) == log.num_items
                assert not set(unviewed["item_id"]) & set(history)


def test_a_run_keeps_what_its_own_log_decided(tiny_events, tmp_path):
    """The log at hand when a model is saved may be another one, with other repeats."""
    train(EventLog.prepare(tiny_events, tmp_path / "log"), tmp_path / "run")
    again = EventLog.prepare(pl.concat([tiny_events, tiny_events]), tmp_path / "again")
    assert again.has_repeats
    BlossomRec.from_pretrained(tmp_path / "run", again).save_pretrained(tmp_path / "saved")
    for folder in ("run", "saved"):
        assert read_run_config(tmp_path / folder).filter_viewed is True
        assert json.loads((tmp_path / folder / "config.json").read_text())["filter_viewed"] is True


def test_runs_that_do_not_say_leave_out_what_was_viewed(repeat_log, tmp_path):
    train(repeat_log, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    del values["filter_viewed"]
    path.write_text(json.dumps(values))
    assert BlossomRec.from_pretrained(tmp_path / "run").filter_viewed is True
    path.write_text(json.dumps(values | {"filter_viewed": "no"}))
    with pytest.raises(RunError, match="filter_viewed is 'no': true or false is needed"):
        BlossomRec.from_pretrained(tmp_path / "run")


@pytest.fixture(scope="module")
def model(tiny_log, tmp_path_factory):
    return train(tiny_log, tmp_path_factory.mktemp("model") / "run")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"k": "3"}, "k is '3': a whole number is needed"),
        ({"k": True}, "k is True: a whole number is needed"),
        ({"k": 1.5}, "k is 1.5: a whole number is needed"),
        ({"k": 0}, "k is 0: it must be at least 1"),
        ({"max_len": "9"}, "max_len is '9': a whole number is needed"),
        ({"max_len": 0}, "max_len is 0: it must be at least 1"),
        ({"filter_viewed": "yes"}, "filter_viewed is 'yes': true or false is needed"),
        ({"filter_viewed": 1}, "filter_viewed is 1: true or false is needed"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(model, options, words):
    for ask in (
        lambda: model.recommend([1001], **options),
        lambda: model.recommend_history([50_003], **options),
    ):
        with pytest.raises(ConfigError) as error:
            ask()
        assert str(error.value) == words


def test_other_arguments_of_a_wrong_type_are_named(model):
    with pytest.raises(ConfigError, match="k is '3': a whole number is needed"):
        model.similar_items([50_003], k="3")
    with pytest.raises(ConfigError, match=r"unknown is \['skip'\]: choose one of skip, refuse"):
        model.recommend_history([50_003], unknown=["skip"])
