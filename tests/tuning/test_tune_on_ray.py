"""Trials by Ray's workers: the outcome of one process, workers and searches that die, refusals."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from blossomrec import tune
from blossomrec.config import RunConfig, with_options
from blossomrec.engines import load_ray
from blossomrec.errors import ConfigError, DataError, MissingExtraError, RunError
from blossomrec.tuning import on_ray
from blossomrec.tuning import study as studies
from small_options import SMALL, small_flags

pytest.importorskip("optuna")
pytestmark = pytest.mark.usefixtures("one_thread")
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs the package ray (extra: ray)"
)


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, with room for two trials."""
    ray = load_ray()
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def one_core_each(monkeypatch):
    """Trials that run one by one leave a core idle, so that their sums are those of one thread."""
    monkeypatch.setattr(on_ray, "share", lambda machines, jobs: 1)


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.toml"
    # Nothing is learned at the smaller rate.
    path.write_text(
        "[model]\ndropout = {low = 0.0, high = 0.5}\n"
        "[training]\nlearning_rate = {choices = [0.005, 1e-9]}"
    )
    return str(path)


def small(**options):
    return with_options(RunConfig(), {**SMALL, **options})


def search(log, folder, space, config=None, *, engine="ray", **options):
    options = {"trials": 2, "startup": 1, "min_epochs": 1, **options}
    config = config or small()
    return tune(log, folder, config, space=space, progress=False, engine=engine, **options)


def told(result):
    """What does not depend on the clock."""
    return [{key: one[key] for key in one if key != "seconds"} for one in result.trials]


def begin(log, folder, space, ray, **training):
    """A search by the command line, which joins the cluster."""
    joined = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    flags = ["--space", space, "--trials", "2", "--startup", "1", "--min-epochs", "1"]
    flags += ["--jobs", "1", "--engine", "ray", *small_flags(**training)]
    command = [sys.executable, "-m", "blossomrec", "tune", str(log.folder), str(folder), *flags]
    return subprocess.Popen(command, env=os.environ | joined, stderr=subprocess.PIPE, text=True)


def wait_for_an_epoch(folder):
    path = folder / "trials" / "0000" / "log.jsonl"
    for _ in range(3_000):
        if path.exists() and b"\n" in path.read_bytes():
            return
        time.sleep(0.02)
    raise AssertionError("no epoch ended in a minute")


@needs_ray
def test_its_outcome_is_that_of_one_process(tiny_log, tmp_path, space, cluster, one_core_each):
    config = small(epochs=2)
    outcomes = [
        search(tiny_log, tmp_path / engine, space, config, trials=5, jobs=1, engine=engine)
        for engine in ("local", "ray")
    ]
    assert told(outcomes[0]) == told(outcomes[1])
    assert {one["state"] for one in outcomes[0].trials} == {"complete", "pruned"}
    assert outcomes[0].config == outcomes[1].config and outcomes[0].value == outcomes[1].value
    best = [path.read_bytes() for path in tmp_path.glob("*/trials/0000/model.safetensors")]
    assert len(best) == 2 and best[0] == best[1]


@needs_ray
def test_as_many_at_a_time_as_there_are_cores(tiny_log, tmp_path, space, cluster, monkeypatch):
    train = on_ray._train

    def met(*given, threads):
        """Trains when both are there."""
        (tmp_path / f"{given[3]}.begun").touch()
        for _ in range(6_000):
            if len(list(tmp_path.glob("*.begun"))) == 2:
                break
            time.sleep(0.01)
        ended = train(*given, threads=threads)
        # What holds the study is not even loaded.
        assert "optuna" not in sys.modules
        together = len(list(tmp_path.glob("*.begun")))
        (tmp_path / f"{given[3]}.json").write_text(json.dumps([os.getpid(), threads, together]))
        return ended

    monkeypatch.setattr(on_ray, "_train", met)
    result = search(tiny_log, tmp_path / "t", space, pruner="none")
    assert [one["state"] for one in result.trials] == ["complete"] * 2
    first, second = (json.loads((tmp_path / f"{number}.json").read_text()) for number in (0, 1))
    assert first[1:] == second[1:] == [1, 2] and len({first[0], second[0], os.getpid()}) == 3


@needs_ray
def test_a_killed_worker_loses_its_trial_alone(tiny_log, tmp_path, space, cluster, monkeypatch):
    train = on_ray._train

    def deadly(exchange, *given, threads):
        """Dies in the second trial, when its first epoch is told."""

        class Last:
            def remote(self, *report):
                load_ray().get(exchange.report.remote(*report))
                os.kill(os.getpid(), signal.SIGKILL)

        told = SimpleNamespace(report=Last()) if given[2] == 1 else exchange
        return train(told, *given, threads=threads)

    monkeypatch.setattr(on_ray, "_train", deadly)
    config = small(epochs=2)
    trials = search(tiny_log, tmp_path / "t", space, config, jobs=1, pruner="none").trials
    assert [one["state"] for one in trials] == ["complete", "failed", "complete"]
    assert trials[1]["reason"].startswith("its worker died: ") and trials[1]["epochs"] == 1
    # Which is no trial more.
    assert trials[2]["options"] == trials[1]["options"] != trials[0]["options"]
    assert trials[2]["epochs"] == 2
    again = search(tiny_log, tmp_path / "t", space, config, jobs=1, pruner="none").trials
    assert again == trials


@needs_ray
def test_a_search_that_was_killed_goes_on(tiny_log, tmp_path, space, cluster, one_core_each):
    config = small(epochs=3)
    with begin(tiny_log, tmp_path / "killed", space, cluster, epochs=3) as process:
        wait_for_an_epoch(tmp_path / "killed")
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    # Ray ends the workers of a driver that is gone, soon.
    for _ in range(300):
        if cluster.available_resources().get("CPU") == 2:
            break
        time.sleep(0.1)
    after = search(tiny_log, tmp_path / "killed", space, config, jobs=1)
    assert told(after) == told(search(tiny_log, tmp_path / "whole", space, config, engine="local"))


@needs_ray
def test_a_signal_saves_checkpoints(tiny_log, tmp_path, space, cluster):
    folder = tmp_path / "t"
    with begin(tiny_log, folder, space, cluster, epochs=2_000, patience=2_000) as process:
        wait_for_an_epoch(folder)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 128 + signal.SIGINT
    assert "stopped by SIGINT, checkpoint saved" in said
    assert list((folder / "trials" / "0000" / "checkpoints").iterdir())
    (trial,) = studies.open_study(folder, studies.read_search(folder)).trials
    assert trial.state.name == "RUNNING" and trial.intermediate_values


@needs_ray
def test_a_machine_that_sees_something_else_is_named(
    tiny_log, tmp_path, space, cluster, monkeypatch
):
    train = on_ray._train

    def elsewhere(exchange, folder, *given, threads):
        return train(exchange, folder / "local", *given, threads=threads)

    def later(exchange, folder, search, *given, threads):
        other = replace(search, identity={"events": 3})
        return train(exchange, folder, other, *given, threads=threads)

    monkeypatch.setattr(on_ray, "_train", elsewhere)
    with pytest.raises(RunError, match=r"t/local/tune\.json is not there on the machine "):
        search(tiny_log, tmp_path / "t", space)
    monkeypatch.setattr(on_ray, "_train", later)
    with pytest.raises(DataError, match=r"log has changed since the search began"):
        search(tiny_log, tmp_path / "t", space)


@needs_ray
def test_a_gpu_that_is_nowhere_is_refused(tiny_log, tmp_path, space, cluster):
    with pytest.raises(RunError, match="the cluster has no GPU"):
        search(tiny_log, tmp_path / "t", space, small(device="cuda"))


@pytest.mark.parametrize(
    ("machines", "jobs", "cores"),
    [
        ([2], 1, 2),
        ([2], 2, 1),
        ([8, 8, 8], 2, 8),
        ([8, 8, 8], 4, 4),
        ([8, 8, 4], 4, 4),
        ([1], 9, 1),
    ],
)
def test_trials_share_the_cores_of_each_machine(machines, jobs, cores):
    assert on_ray.share(machines, jobs) == cores


def test_the_missing_extra_is_named_before_anything_is_written(
    tiny_log, tmp_path, space, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'blossomrec\[ray\]'"):
        search(tiny_log, tmp_path / "t", space)
    with pytest.raises(ConfigError, match="engine is 'spark'"):
        search(tiny_log, tmp_path / "t", space, engine="spark")
    assert not (tmp_path / "t").exists()
