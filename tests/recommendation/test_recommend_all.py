"""Recommendations for many users in files: the same as one by one, whole, and resumed."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest

from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError, RunError
from blossomrec.evaluation import scoring
from blossomrec.recommendation import bulk, job, user_histories
from blossomrec.recommendation.bulk import BulkInterrupted
from blossomrec.recommendation.ranked_users import UserRanker
from blossomrec.recommender import BlossomRec
from command_line import content, refuse
from small_options import SMALL

pytestmark = pytest.mark.usefixtures("one_thread", "wide_terminal")


@pytest.fixture(scope="module")
def recommender(tiny_log):
    """Read only."""
    return BlossomRec(**SMALL | {"epochs": 2}).fit(tiny_log, progress=False)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 7 users at k = 9, batches of at most 5 users and 60 events."""
    monkeypatch.setattr(job, "ROWS_OF_PART", 63)
    monkeypatch.setattr(user_histories, "USERS_AT_ONCE", 5)
    monkeypatch.setattr(user_histories, "EVENTS_AT_ONCE", 60)


def write(recommender, out, *given, **options):
    return recommender.recommend_all(out, *given, progress=False, **options)


def same(found, wanted):
    assert found.columns == wanted.columns and found.dtypes == wanted.dtypes
    assert found.drop("score").equals(wanted.drop("score"))
    assert np.allclose(found["score"], wanted["score"], atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"filter_viewed": False}, {"max_len": 3}, {"items": list(range(50_003, 50_300, 7))}],
)
def test_files_hold_what_is_recommended_user_by_user(
    recommender, tiny_log, tmp_path, small_parts, options
):
    out = tmp_path / "recs.parquet"
    written = write(recommender, out, None, 9, **options)
    found = pl.read_parquet(out)
    users = tiny_log.user_vocabulary.read().to_list()
    same(found, recommender.recommend(k=9, **options))
    same(found, pl.concat([recommender.recommend([user], 9, **options) for user in users]))
    assert (written.files, written.users, written.rows) == ([out], 60, len(found))
    assert found.columns == ["user_id", "item_id", "score", "rank"]
    assert [path.name for path in tmp_path.iterdir()] == ["recs.parquet"]


def test_equal_scores_are_in_order_of_item_row(tiny_log, tmp_path, small_parts, monkeypatch):
    import torch

    monkeypatch.setattr(scoring, "SCORE_ELEMENTS", 300)
    tied = BlossomRec(**SMALL).fit(tiny_log, progress=False)
    with torch.no_grad():
        # Whole numbers, so that products are exact whatever their order.
        tied.model.item_embeddings.weight.copy_(
            torch.arange(80)[:, None].div(20, rounding_mode="floor").expand(80, 16)
        )
    write(tied, tmp_path / "recs.parquet", None, 60)
    found = pl.read_parquet(tmp_path / "recs.parquet")
    same(found, tied.recommend(k=60))
    rows = tiny_log.item_vocabulary.rows(found["item_id"])
    keys = np.stack([-found["score"].to_numpy(), rows])
    for user in found["user_id"].unique():
        own = keys[:, (found["user_id"] == user).to_numpy()]
        assert (np.lexsort(own[::-1]) == np.arange(own.shape[1])).all()


@pytest.mark.parametrize("options", [{"shards": 4}, {"rows_per_file": 100}, {"shards": 60}])
def test_a_folder_of_files_holds_the_same(recommender, tmp_path, small_parts, options):
    out = tmp_path / "recs"
    written = write(recommender, out, None, 9, **options)
    parts = [pl.read_parquet(path) for path in written.files]
    same(pl.concat(parts), recommender.recommend(k=9))
    assert [path.name for path in written.files] == [
        f"part-{number:05}.parquet" for number in range(len(parts))
    ]
    users = [part["user_id"].n_unique() for part in parts]
    if "shards" in options:
        assert len(parts) == options["shards"] and max(users) - min(users) <= 1
    else:
        assert max(map(len, parts)) <= 100 and len(parts) == 6
    told = json.loads((out / "_manifest.json").read_text())
    assert told["job"]["k"] == 9
    assert [each["file"] for each in told["files"]] == [path.name for path in written.files]
    assert not (out / ".parts").exists()


class Killed(BaseException):
    """As a kill: nothing in between catches it."""


@pytest.mark.parametrize("options", [{}, {"shards": 3}])
def test_a_killed_job_goes_on_to_the_same_bytes(
    recommender, tmp_path, small_parts, monkeypatch, options
):
    out = "recs" if options else "recs.parquet"
    write(recommender, tmp_path / "whole" / out, None, 9, **options)
    asked, calls, ranked = [], [], UserRanker.ranked

    def killed(self, users):
        calls.append(len(users))
        for number, part in enumerate(ranked(self, users)):
            if number == 1 and len(calls) % 2:
                raise Killed
            yield part
        asked.extend(users.tolist())

    monkeypatch.setattr(UserRanker, "ranked", killed)
    kills, place = 0, tmp_path / "killed"
    while True:
        try:
            written = write(recommender, place / out, None, 9, **options)
            break
        except Killed:
            kills += 1
            before = {path for path in content(place) if path.name == out}
            assert not before, "a file is there before it is whole"
    assert kills > 2
    # Nobody was asked for twice in vain.
    assert sorted(asked) == list(range(60))
    whole = {p.relative_to(tmp_path / "whole"): b for p, b in content(tmp_path / "whole").items()}
    assert {p.relative_to(place): b for p, b in content(place).items()} == whole
    assert len(written.files) == options.get("shards", 1)


def test_what_is_whole_is_not_done_again(recommender, tmp_path, small_parts, monkeypatch):
    written = write(recommender, tmp_path / "recs", None, 9, shards=4)
    before = content(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(bulk, "_work", None)
        assert write(recommender, tmp_path / "recs", None, 9, shards=4) == written
    # A file that is gone, or damaged, is made again.
    written.files[1].unlink()
    written.files[2].write_bytes(before[written.files[2]][:-9])
    assert write(recommender, tmp_path / "recs", None, 9, shards=4) == written
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "out, options", [("recs", {"shards": 3}), ("recs", {"rows_per_file": 90}), ("recs.parquet", {})]
)
def test_what_other_options_gave_is_refused_and_stays(
    recommender, repeat_log, tmp_path, out, options
):
    write(recommender, tmp_path / out, None, 9, **options)
    before = content(tmp_path)
    users = [1001, 1004, 1007, 1010]
    others = [
        ({"k": 8}, "k: 9, now 8"),
        ({"max_len": 4}, "max_len: 20, now 4"),
        ({"filter_viewed": False}, "filter_viewed: true, now false"),
        ({"users": users}, "digest of the users, users: 60, now 4"),
        ({"items": [50_003]}, "digest of the items"),
    ]
    for changed, words in others:
        given = {"users": None, "k": 9} | options | changed
        with pytest.raises(RunError, match=f"is of another job .{words}.*choose another --out"):
            write(recommender, tmp_path / out, **given)
    other = BlossomRec(**SMALL | {"seed": 5}).fit(recommender.log, progress=False)
    with pytest.raises(RunError, match="digest of the model"):
        write(other, tmp_path / out, None, 9, **options)
    assert content(tmp_path) == before


def test_files_of_others_are_refused_and_stay(recommender, tmp_path):
    (tmp_path / "recs.parquet").write_text("mine")
    with pytest.raises(RunError, match="holds no recommendations of blossomrec"):
        write(recommender, tmp_path / "recs.parquet", None, 9)
    with pytest.raises(RunError, match=r"holds other files, such as recs.parquet"):
        write(recommender, tmp_path, None, 9, shards=2)
    with pytest.raises(RunError, match="is a file: shards and rows_per_file need a folder"):
        write(recommender, tmp_path / "recs.parquet", None, 9, shards=2)
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(RunError, match="is a folder"):
        write(recommender, tmp_path / "folder.parquet", None, 9)
    assert content(tmp_path) == {tmp_path / "recs.parquet": b"mine"}


def test_the_keyboard_stops_it_and_says_how_far_it_is(
    recommender, tmp_path, small_parts, monkeypatch
):
    ranked = UserRanker.ranked

    def stopped(self, users):
        yield from ranked(self, users)
        if users[0] > 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(UserRanker, "ranked", stopped)
    with pytest.raises(BulkInterrupted, match="stopped, 28 of 60 users are done") as stop:
        write(recommender, tmp_path / "recs.parquet", None, 9)
    assert stop.value.command == ""


def test_a_second_writer_is_refused(recommender, tmp_path, small_parts, monkeypatch):
    ranked = UserRanker.ranked

    def nested(self, users):
        monkeypatch.setattr(UserRanker, "ranked", ranked)
        with pytest.raises(RunError, match="is being written by"):
            write(recommender, tmp_path / "recs.parquet", None, 9)
        yield from ranked(self, users)

    monkeypatch.setattr(UserRanker, "ranked", nested)
    write(recommender, tmp_path / "recs.parquet", None, 9)
    same(pl.read_parquet(tmp_path / "recs.parquet"), recommender.recommend(k=9))


@pytest.mark.parametrize("name", ["ids.txt", "ids.parquet", "ids.csv", "one.csv", "ids.tsv"])
def test_users_are_listed_in_a_file(recommender, tmp_path, name):
    users, path = [1070, 1001, 1070, 1004], tmp_path / name
    frame = pl.DataFrame({"user_id": users, "other": 1})
    if name == "one.csv":
        frame = frame.select(pl.col("user_id").alias("who"))
    if path.suffix == ".txt":
        path.write_text("1070\n\n 1001\r\n1070\n1004")
    elif path.suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    write(recommender, tmp_path / "recs.parquet", path, 4)
    same(pl.read_parquet(tmp_path / "recs.parquet"), recommender.recommend([1001, 1004, 1070], k=4))


def test_unknown_users_are_named_with_their_place(recommender, tmp_path):
    out, path = tmp_path / "recs.parquet", tmp_path / "ids.txt"
    path.write_text("1001\n\n7\nx\n1004\n012\n9\n")
    words = (
        r"ids\.txt: 4 of 6 users are not in the log \(line 3: '7', line 4: 'x', line 6: '012' "
        r"and 1 more\)"
    )
    with pytest.raises(DataError, match=words + "; --unknown skip leaves them out"):
        write(recommender, out, path, 4)
    assert not out.exists()
    with pytest.warns(UserWarning, match=words):
        write(recommender, out, path, 4, unknown="skip")
    same(pl.read_parquet(out), recommender.recommend([1001, 1004], k=4))
    with pytest.raises(DataError, match=r"users: 1 of 2 users are not in the log \(users\[1\]: 5"):
        write(recommender, out, [1001, 5], 4)
    path.write_text("5\n")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(DataError, match="no user is given that is in the log"),
    ):
        write(recommender, out, path, 4, unknown="skip")
    path.write_text("\n")
    with pytest.raises(DataError, match=r"no user is given$"):
        write(recommender, out, path, 4)


def test_lists_that_cannot_be_read_are_refused(recommender, tmp_path):
    out = tmp_path / "recs.parquet"
    with pytest.raises(DataError, match=r"none\.txt does not exist"):
        write(recommender, out, tmp_path / "none.txt", 4)
    pl.DataFrame({"a": [1], "b": [2]}).write_parquet(tmp_path / "two.parquet")
    with pytest.raises(DataError, match="no column 'user_id' and several others: a, b"):
        write(recommender, out, tmp_path / "two.parquet", 4)
    pl.DataFrame({"user_id": [1001, None]}).write_parquet(tmp_path / "gap.parquet")
    with pytest.raises(DataError, match="column 'user_id', row 2: it is missing"):
        write(recommender, out, tmp_path / "gap.parquet", 4)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(DataError, match="cannot be read as text"):
        write(recommender, out, tmp_path / "bytes.txt", 4)


@pytest.mark.parametrize(
    "given, words",
    [
        ({"k": 81}, "k is 81: the model knows 80 items"),
        ({"k": 0}, "k is 0: it must be at least 1"),
        ({"shards": 61}, "shards is 61: there are only 60 users"),
        ({"shards": 0}, "shards is 0: it must be at least 1"),
        ({"shards": 2, "rows_per_file": 100}, "shards and rows_per_file are both given"),
        ({"rows_per_file": 8}, "rows_per_file is 8: it must be at least k, 9"),
        ({"unknown": "drop", "users": [1001]}, "unknown is 'drop'"),
        ({"max_len": 0}, "max_len is 0"),
    ],
)
def test_options_out_of_bounds_are_named(recommender, tmp_path, given, words):
    folder = {"shards", "rows_per_file"} & given.keys()
    out = tmp_path / ("recs" if folder else "recs.parquet")
    with pytest.raises(ConfigError) as error:
        write(recommender, out, **{"k": 9} | given)
    assert words in str(error.value)
    assert not content(tmp_path)


def test_a_model_for_another_log_skips_what_it_does_not_know(recommender, tiny_events, tmp_path):
    """Items in other rows, some of them unknown, and users without any that is known."""
    other = pl.concat(
        [
            tiny_events.filter(pl.col("user_id") < 1100).with_columns(
                item_id=pl.when(pl.col("item_id") % 3 == 0)
                .then(pl.col("item_id") + 1_000_000)
                .otherwise(pl.col("item_id"))
            ),
            pl.DataFrame({"user_id": [5, 5], "item_id": [1, 2], "timestamp": [1, 2]}),
        ]
    )
    log = EventLog.prepare(other, tmp_path / "log")
    elsewhere = recommender.__copy__()
    elsewhere.log = log
    with pytest.warns(UserWarning, match="of items that the model does not know"):
        write(elsewhere, tmp_path / "recs.parquet", None, 6)
    found = pl.read_parquet(tmp_path / "recs.parquet")
    assert 5 not in found["user_id"] and found["user_id"].n_unique() > 30
    known = set(recommender.items.read())
    for user in found["user_id"].unique(maintain_order=True).to_list()[:12]:
        history = other.filter(user_id=user).sort("timestamp")["item_id"].to_list()
        wanted = recommender.recommend_history([i for i in history if i in known], 6)
        same(found.filter(user_id=user).drop("user_id"), wanted)


def test_every_input_of_a_model_travels(kind_log, tmp_path, small_parts):
    """Times, moments, kinds and context are seen as in ``recommend_history``."""
    inputs = {name: "on" for name in ("time_gap", "request_time", "event_kinds", "context")}
    seen = BlossomRec(**SMALL | inputs | {"request_kind": "on"}).fit(kind_log, progress=False)
    asked = {"kind": "buy", "at": 1_700_500_000}
    write(seen, tmp_path / "recs.parquet", None, 5, **asked)
    found = pl.read_parquet(tmp_path / "recs.parquet")
    for row in (0, 31, 59):
        user, history = kind_log.user_vocabulary.ids([row])[0], kind_log.history(row)
        values = [kind_log.fields.values(each) or {} for each in history.context]
        events = {
            "item_id": kind_log.item_vocabulary.ids(history.items).to_list(),
            "timestamp": history.times.tolist(),
            "kind": [(None, *kind_log.fields.kinds)[number] for number in history.kinds],
            "shop": [each.get("shop") for each in values],
            "price": [each.get("price") for each in values],
        }
        wanted = seen.recommend_history(events, 5, **asked)
        same(found.filter(user_id=user).drop("user_id"), wanted)


def test_on_the_command_line(cli, capsys, tiny_log, tmp_path):
    run = tmp_path / "run"
    fitted = BlossomRec(**SMALL).fit(tiny_log, run, progress=False)
    asked = ["recommend", run, "--all", "--k", 9, "--out", tmp_path / "recs.parquet"]
    wanted = fitted.recommend(k=9)
    assert f"{len(wanted)} items for 60 users are in {tmp_path}" in cli(*asked)
    same(pl.read_parquet(tmp_path / "recs.parquet"), wanted)
    (tmp_path / "ids.txt").write_text("1004\n17\n")
    asked = ["recommend", run, "--users", tmp_path / "ids.txt", "--out", tmp_path / "some"]
    asked += ["--shards", 1, "--k", 3]
    refuse(capsys, *asked, words=["line 2: '17'", "--unknown skip leaves them out"])
    assert "3 items for 1 users" in cli(*asked, "--unknown", "skip")
    same(pl.read_parquet(tmp_path / "some" / "*.parquet"), fitted.recommend([1004], k=3))
    shutil.rmtree(tmp_path / "some")
    refuse(capsys, *asked[:-1], 99, "--unknown", "skip", words=["k is 99: the model knows 80"])


@pytest.mark.parametrize(
    ("users", "k", "largest"),
    [(500, 10, 500), (40_000, 10, 1_024), (400_000, 10, 6_250), (9_000_000, 10, 8_192),
     (400_000, 100, 5_242), (400_000, 1 << 20, 1)],
)  # fmt: skip
def test_parts_of_a_small_job_are_small(users, k, largest):
    each = job._users_of_part(users, k)
    parts = job.Job({}, np.arange(users), [0, users], each).parts(0)
    assert max(stop - first for first, stop in parts) == largest
