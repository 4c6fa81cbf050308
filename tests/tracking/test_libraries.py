"""Each tracker with its library, by the library's own reader."""

import os
import struct
import time
from pathlib import Path

import pytest

from blossomrec.tracking import TRACKERS, Place

PARAMETERS = {"model.dropout": 0.5, "data.training events": 3, "training.targets": ""}


def place(tmp_path, name="first", group="search"):
    return Place(tmp_path / "tracking", name, group)


def one_training(kind, where, model):
    """Begun, broken off, gone on with to its end; gives the identity."""
    tracker = TRACKERS.get(kind)(where)
    identity = tracker.start(None, 0)
    tracker.log_parameters(PARAMETERS)
    tracker.log_metrics({"loss": 2.5, "validation/ndcg@10": 0.125}, 5)
    if kind == "wandb":
        # In one process it does not begin a run twice.
        tracker.finalize("interrupted")
        # It names folders by the second: two in one would write into each other's file.
        time.sleep(1)
    again = TRACKERS.get(kind)(where)
    assert again.start(identity, 5) == identity
    again.log_parameters(PARAMETERS | {"training.epochs": 7})
    again.log_metrics({"loss": 1.5, "validation/ndcg@10": 0.25}, 10)
    again.log_metrics({"test-full/ndcg@10": 0.375}, None)
    for path in (model / "config.json", model / "vocabulary"):
        again.log_artifact(path)
    again.finalize("finished")
    return identity


@pytest.fixture
def model(tmp_path):
    (tmp_path / "run" / "vocabulary").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "vocabulary" / "ids").write_text("1")
    return tmp_path / "run"


def test_tensorboard(tmp_path, model):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one_training("tensorboard", place(tmp_path), model)
    events = EventAccumulator(str(tmp_path / "tracking" / "tensorboard" / "first"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "validation/ndcg@10", "test-full/ndcg@10"}
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(5, 2.5), (10, 1.5)]
    assert "| model.dropout | 0.5 |" in str(events.Tensors("parameters/text_summary")[0])


@pytest.fixture
def mlflow_client(tmp_path):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    pytest.importorskip("alembic")
    from mlflow.tracking import MlflowClient

    database = (tmp_path / "tracking" / "mlflow" / "mlflow.db").resolve()
    return lambda: MlflowClient(tracking_uri=f"sqlite:///{database}")


def test_mlflow(tmp_path, model, mlflow_client):
    identity = one_training("mlflow", place(tmp_path), model)
    # A run that is gone is not gone on with.
    second = TRACKERS.get("mlflow")(place(tmp_path, "second", ""))
    assert second.start("0" * 32, 5) not in (identity, "0" * 32)
    second.finalize("interrupted")
    client = mlflow_client()
    (experiment,) = client.search_experiments(filter_string="name = 'blossomrec'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    first = runs["first"]
    assert (first.info.run_id, first.info.status) == (identity, "FINISHED")
    assert runs["second"].info.status == "KILLED"
    assert first.data.tags["group"] == "search" and "group" not in runs["second"].data.tags
    parameters = {name: str(value) for name, value in PARAMETERS.items()}
    assert first.data.params == parameters | {"training.epochs": "7"}
    history = client.get_metric_history(identity, "validation/ndcg_at_10")
    assert [(one.step, one.value) for one in history] == [(5, 0.125), (10, 0.25)]
    assert first.data.metrics["test-full/ndcg_at_10"] == 0.375
    assert {one.path for one in client.list_artifacts(identity)} == {"config.json", "vocabulary"}
    assert not Path("mlruns").exists()


def test_wandb(tmp_path, model):
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    identity = one_training("wandb", place(tmp_path), model)
    # Its own process writes the file, and is not waited for when a run is finished.
    wandb.teardown()
    folders = sorted((tmp_path / "tracking" / "wandb").glob(f"offline-run-*-{identity}"))
    assert len(folders) == 2
    (file,) = folders[-1].glob("*.wandb")
    told = wandb_records(file)
    assert [one.run.run_id for one in told if one.WhichOneof("record_type") == "run"] == [identity]
    summary = {
        item.key or "/".join(item.nested_key): item.value_json
        for one in told
        if one.WhichOneof("record_type") == "summary"
        for item in one.summary.update
    }
    assert summary["test-full/ndcg@10"] == "0.375"
    assert (folders[-1] / "files" / "vocabulary" / "ids").read_text() == "1"
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


def wandb_records(file):
    """The records in the file of an offline run: those of a LevelDB log, after a header."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, records, parts = file.read_bytes(), [], b""
    at, block, last = 7, 1 << 15, (1, 4)
    while at + 7 <= len(content):
        if block - at % block < 7:
            # What is left of a block is too short for a header.
            at += block - at % block
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in last:
            records.append(Record.FromString(parts))
            parts = b""
    return records
