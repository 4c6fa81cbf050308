"""The engine of Ray: the same bytes, also where workers die, and clear refusals."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time

import polars as pl
import pytest

from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError, MissingExtraError, RunError, TrainingError
from blossomrec.recommendation import job, on_ray
from blossomrec.recommender import BlossomRec
from blossomrec.rules import Rules
from command_line import content, refuse
from small_options import SMALL

# One part, and so one worker.
FEW = [1001, 1004, 1007]
pytestmark = pytest.mark.usefixtures("one_thread", "wide_terminal")
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs the package ray (extra: ray)"
)


@pytest.fixture(scope="module")
def recommender(tiny_log):
    """Read only."""
    return BlossomRec(**SMALL).fit(tiny_log, progress=False)


@pytest.fixture(scope="module")
def two_workers():
    """Ray on this machine, with room for two workers."""
    ray = on_ray.load_ray()
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 7 users at k = 9."""
    monkeypatch.setattr(job, "ROWS_OF_PART", 63)


def write(recommender, out, *given, **options):
    return recommender.recommend_all(out, *given, progress=False, **options)


def files(folder):
    return {path.relative_to(folder): data for path, data in content(folder).items()}


@pytest.fixture
def expected(recommender, small_parts, tmp_path):
    """What the local engine writes into files, by their options."""

    def written(out, **options):
        write(recommender, tmp_path / "local" / out, None, 9, **options)
        return files(tmp_path / "local")

    return written


@needs_ray
def test_its_file_is_that_of_the_local_engine(
    recommender, two_workers, expected, tmp_path, monkeypatch
):
    (tmp_path / "ray").mkdir()
    # Workers have another working folder.
    monkeypatch.chdir(tmp_path / "ray")
    written = write(recommender, "recs.parquet", None, 9, engine="ray")
    assert files(tmp_path / "ray") == expected("recs.parquet")
    assert written.users == 60


@needs_ray
def test_rules_and_their_tables_travel(recommender, two_workers, small_parts, tmp_path):
    ids = recommender.items.read()
    table = pl.DataFrame({"item_id": ids, "price": range(len(ids)), "brand": ["a", "b"] * 40})
    rules = Rules(
        filter="price > 9", boost=[("price < 20", 0.5)], max_per={"brand": 3}, diversity=0.2,
        items=table, fallback="recent-popularity",
    )  # fmt: skip
    for engine in ("local", "ray"):
        out = tmp_path / engine / "recs.parquet"
        write(recommender, out, FEW, 5, rules=rules, engine=engine)
    assert files(tmp_path / "ray") == files(tmp_path / "local")


@needs_ray
def test_a_killed_worker_loses_nothing(recommender, two_workers, expected, tmp_path):
    out, mark = tmp_path / "ray" / "recs", tmp_path / "killed"

    class Deadly(BlossomRec):
        """Kills the process that computes, once, when there are parts already."""

        def _users_frame(self, ranked):
            if list((out / ".parts").glob("users-*.parquet")) and not mark.exists():
                mark.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._users_frame(ranked)

    deadly = recommender.__copy__()
    deadly.__class__ = Deadly
    write(deadly, out, None, 9, shards=2, engine="ray")
    assert int(mark.read_text()) != os.getpid()
    assert files(tmp_path / "ray") == expected("recs", shards=2)


@needs_ray
def test_a_part_that_kills_every_worker_ends_the_job(
    recommender, two_workers, small_parts, tmp_path, monkeypatch
):
    monkeypatch.setattr(on_ray, "RETRIES", 1)

    class Deadly(BlossomRec):
        def _users_frame(self, ranked):
            os.kill(os.getpid(), signal.SIGKILL)

    deadly = recommender.__copy__()
    deadly.__class__ = Deadly
    with pytest.raises(RunError, match="2 workers that wrote users 0 to 3 died"):
        write(deadly, tmp_path / "recs.parquet", FEW, 9, engine="ray")


@needs_ray
def test_it_goes_on_with_what_the_local_engine_began(recommender, two_workers, expected, tmp_path):
    place, calls = tmp_path / "ray", []

    class Stopped(BlossomRec):
        def _users_frame(self, ranked):
            calls.append(ranked.asked)
            if len(calls) == 9:
                raise RuntimeError
            return super()._users_frame(ranked)

    stopped = recommender.__copy__()
    stopped.__class__ = Stopped
    with pytest.raises(RuntimeError):
        write(stopped, place / "recs.parquet", None, 9)
    assert len(list(place.rglob("users-*.parquet"))) == 8

    class Watched(BlossomRec):
        """Fails where users are asked for again who were done."""

        def _users_frame(self, ranked):
            assert not set(ranked.users) & set(range(56))
            return super()._users_frame(ranked)

    watched = recommender.__copy__()
    watched.__class__ = Watched
    write(watched, place / "recs.parquet", None, 9, engine="ray")
    assert files(place) == expected("recs.parquet")


@needs_ray
def test_what_a_worker_raises_is_raised(recommender, two_workers, small_parts, tmp_path):
    class Failing(BlossomRec):
        def _users_frame(self, ranked):
            raise TrainingError("a score is not a number")

    failing = recommender.__copy__()
    failing.__class__ = Failing
    with pytest.raises(TrainingError, match=r"^a score is not a number$"):
        write(failing, tmp_path / "recs.parquet", FEW, 9, engine="ray")


@needs_ray
def test_a_log_that_has_grown_is_refused_by_a_worker(
    recommender, two_workers, tiny_events, tmp_path, monkeypatch
):
    log = EventLog.prepare(tiny_events, tmp_path / "log")
    other = recommender.__copy__()
    other.log = log
    for_others = on_ray._for_others

    def late(writer):
        log.append(tiny_events.head(1).with_columns(timestamp=2_000_000_000))
        return for_others(writer)

    monkeypatch.setattr(on_ray, "_for_others", late)
    with pytest.raises(DataError, match=r"log has changed since .* began"):
        write(other, tmp_path / "recs.parquet", FEW, 9, engine="ray")


@needs_ray
def test_workers_start_before_there_is_a_job_and_leave(two_workers):
    def free(cores):
        for _ in range(600):
            if two_workers.available_resources().get("CPU", 0) == cores:
                return True
            time.sleep(0.1)
        return False

    assert free(2)
    with on_ray.started_ray("cpu"):
        assert free(0)
    assert free(2)


@needs_ray
def test_a_model_on_a_gpu_needs_one(recommender, two_workers):
    with pytest.raises(RunError, match="the cluster has no GPU for the model"):
        on_ray._workers(two_workers, "cuda", 3)


def test_other_engines_and_other_uses_are_refused(recommender, tmp_path, capsys):
    with pytest.raises(ConfigError, match="engine is 'spark': choose one of local, ray"):
        write(recommender, tmp_path / "recs.parquet", None, 9, engine="spark")
    asked = ["recommend", tmp_path, "--user", 1001, "--engine", "ray"]
    refuse(capsys, *asked, words=["--engine is ray: it is for --all and --users"])
    assert not content(tmp_path)


def test_the_missing_extra_is_named(recommender, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'blossomrec\[ray\]'"):
        write(recommender, tmp_path / "recs.parquet", None, 9, engine="ray")
    assert not content(tmp_path)
