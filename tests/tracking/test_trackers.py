"""What trackers are told of a training, and that none of them stops it."""

import contextlib
import json
import sys
import threading
import warnings

import pytest

from blossomrec.errors import ConfigError, MissingExtraError, UnknownNameError
from blossomrec.tracking import TRACKERS, Tracker, delivery
from blossomrec.tracking.trackers import Trackers, tell_trackers
from blossomrec.training.watch import RunLog, TrainingInterrupted

TRAINING = {"config": {"model": {"dropout": 0.5}, "training": {"seed": 1}}, "data": {"users": 3}}


def record(step, value=0.5, **others):
    validation = {"ndcg@10": value, "hr@10": float("nan")}
    return {"epoch": step // 5, "step": step, "loss": 1.0, "validation": validation} | others


def tell(run, records, size=0, step=0, *, training=TRAINING, error=None, names=("noted",)):
    """A training that logs ``records``; gives the size of its log after each."""
    trackers = Trackers(run, names, training)
    log, sizes = RunLog(run, trackers), []
    expected = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with expected, trackers, contextlib.closing(log):
        log.start(size, step)
        for one in records:
            log.write(one)
            sizes.append(log.size)
        if error is not None:
            raise error
    return sizes


def steps(noted):
    return [step for step, _ in noted.taken("metrics") if step is not None]


def test_a_tracker_is_told_parameters_metrics_artefacts_and_the_end(tmp_path, noted):
    (tmp_path / "config.json").write_text("{}")
    tell(tmp_path, [record(5, best=True), record(10, 0.25, best=False, peak_mib=None)])
    parameters = {"model.dropout": 0.5, "training.seed": 1, "data.users": 3}
    assert noted.calls == [
        ("start", None, 0),
        ("parameters", parameters),
        ("metrics", 5, {"epoch": 1.0, "loss": 1.0, "validation/ndcg@10": 0.5}),
        ("metrics", 10, {"epoch": 2.0, "loss": 1.0, "validation/ndcg@10": 0.25}),
        ("metrics", None, {"best/ndcg@10": 0.5, "best/epoch": 1.0}),
        ("artifact", "config.json"),
        ("finalize", "finished"),
    ]
    assert threading.main_thread() not in noted.threads


def test_the_model_goes_along_on_request(tmp_path, noted):
    for name in ("config.json", "model.safetensors", "log.jsonl"):
        (tmp_path / name).write_text("")
    (tmp_path / "vocabulary").mkdir()
    with Trackers(tmp_path, ["noted"], TRAINING, with_model=True) as trackers:
        trackers.start(0, [])
    assert noted.taken("artifact") == [("config.json",), ("model.safetensors",), ("vocabulary",)]


@pytest.mark.parametrize(
    ("error", "status"),
    [(TrainingInterrupted(15), "interrupted"), (ValueError("nan"), "failed")],
    ids=["signal", "error"],
)
def test_how_it_ended_is_told(tmp_path, noted, error, status):
    tell(tmp_path, [record(5)], error=error)
    assert noted.taken("finalize") == [(status,)]


def test_a_training_that_goes_on_goes_on_in_the_same_run(tmp_path, noted):
    sizes = tell(tmp_path, [record(5), record(10)], error=TrainingInterrupted(15))
    tell(tmp_path, [record(10), record(15)], sizes[0], 5)
    assert noted.taken("start") == [(None, 0), ("1", 10)]
    # The epoch that was trained again came to the same numbers.
    assert steps(noted) == [5, 10, 15]


def test_begun_again_before_a_checkpoint_only_the_same_training_goes_on(tmp_path, noted):
    tell(tmp_path, [record(5)])
    tell(tmp_path, [record(5), record(10)])
    tell(tmp_path, [record(5)], training={**TRAINING, "data": {"users": 4}})
    assert noted.taken("start") == [(None, 0), ("1", 5), (None, 0)]
    assert steps(noted) == [5, 10, 5]


def test_a_run_that_is_gone_is_told_everything_anew(tmp_path, noted):
    sizes = tell(tmp_path, [record(5), record(10)])
    noted.forgotten = True
    tell(tmp_path, [record(15)], sizes[1], 10)
    assert steps(noted) == [5, 10, 5, 10, 15]


@pytest.mark.parametrize("what", ["start", "parameters", "metrics"])
def test_what_failed_is_told_later_and_warned_of_once(tmp_path, noted, what):
    noted.fails[what] = 1
    with pytest.warns(UserWarning, match=f"tracker noted failed.*no answer to {what}") as caught:
        tell(tmp_path, [record(5), record(10), record(15)])
    assert len(caught) == 1
    assert [len(noted.taken(name)) for name in ("start", "parameters")] == [1, 1]
    assert steps(noted) == [5, 10, 15]


def test_a_server_that_is_away_is_told_when_the_training_goes_on(tmp_path, noted):
    noted.fails["start"] = 1_000
    with pytest.warns(UserWarning, match="all else goes on: no answer to start"):
        sizes = tell(tmp_path, [record(5), record(10)])
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").open()] == [5, 10]
    assert noted.calls == []
    noted.fails.clear()
    tell(tmp_path, [record(15)], sizes[1], 10)
    assert steps(noted) == [5, 10, 15]


def test_a_tracker_that_never_answers_is_left_behind(tmp_path, noted, monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(noted, "log_parameters", lambda self, parameters: answered.wait())
    monkeypatch.setattr(delivery, "LAST_SECONDS", 0.05)
    with pytest.warns(UserWarning, match=r"no answer in 0\.05 s"):
        tell(tmp_path, [record(5)])
    answered.set()
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_one_that_fails_takes_no_other_along(tmp_path, noted):
    @TRACKERS.register("broken")
    class Broken(Tracker):
        def log_metrics(self, metrics, step):
            raise RuntimeError

    with pytest.warns(UserWarning, match="tracker broken failed, all else goes on: RuntimeError"):
        tell(tmp_path, [record(5)], names=("broken", "noted"))
    assert steps(noted) == [5]


def test_a_damaged_memory_begins_a_new_run(tmp_path, noted):
    sizes = tell(tmp_path, [record(5)])
    (tmp_path / "tracking" / "noted.json").write_text("{")
    with pytest.warns(UserWarning, match=r"noted\.json is damaged"):
        tell(tmp_path, [record(10)], sizes[0], 5)
    assert noted.taken("start") == [(None, 0), (None, 0)]
    assert steps(noted) == [5, 5, 10]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"place": {"name": "run", "group": ""}}, "folder of place is None"),
        ({"place": {"name": 5, "group": "", "folder": "tracking"}}, "name of place is 5"),
        ({"place": ["tracking"]}, r"place is \['tracking'\]"),
    ],
)
def test_a_memory_without_its_place_is_damaged(tmp_path, noted, change, words):
    tell(tmp_path, [record(5)])
    path = tmp_path / "tracking" / "noted.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    noted.calls.clear()
    with pytest.warns(UserWarning, match=rf"noted\.json is damaged: {words}; what it tells"):
        tell_trackers(tmp_path, {"test-full/ndcg@10": 0.5})
    assert noted.calls == []


def test_unknown_and_missing_trackers_are_named_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="no tracker 'tensorbord': choose one of tensorb"):
        Trackers(tmp_path / "run", ["tensorbord"])
    extras = {"torch.utils.tensorboard": "track", "mlflow": "mlflow", "wandb": "wandb"}
    for name, extra in extras.items():
        # An import of what is None fails.
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtraError, match=rf"blossomrec\[{extra}\]"):
            Trackers(tmp_path / "run", [name.split(".")[-1]])
    assert not (tmp_path / "run").exists()


def test_what_is_found_out_later_is_told_to_the_same_run(tmp_path, noted):
    tell(tmp_path, [record(5)])
    noted.calls.clear()
    page = tmp_path / "report.html"
    page.write_text("")
    tell_trackers(tmp_path, {"test-full/ndcg@10": 0.5}, [page])
    assert noted.calls == [
        ("start", "1", 5),
        ("metrics", None, {"test-full/ndcg@10": 0.5}),
        ("artifact", "report.html"),
        ("finalize", "finished"),
    ]
    # The training may still go on.
    assert json.loads((tmp_path / "tracking" / "noted.json").read_text())["step"] == 5


def test_later_a_tracker_that_is_not_there_is_a_warning(tmp_path, noted):
    tell(tmp_path, [record(5)])
    del TRACKERS._registered["noted"]
    with pytest.warns(UserWarning, match="tracker noted is not told: no tracker 'noted'"):
        tell_trackers(tmp_path, {"test-full/ndcg@10": 0.5})


def test_without_trackers_nothing_is_told_and_nothing_left(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell(tmp_path, [record(5)], names=())
        tell_trackers(tmp_path, {"test-full/ndcg@10": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_no_configuration_makes_a_tracker_of_a_module(tmp_path):
    with pytest.raises(ConfigError, match="no tracker"):
        Trackers(tmp_path, ["os"])
