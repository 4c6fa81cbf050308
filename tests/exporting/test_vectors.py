"""Vectors that were written rank as the model does, by NumPy and by faiss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from blossomrec import BlossomRec
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError, RunError
from blossomrec.exporting import vectors
from blossomrec.exporting.vectors import refuse_other_scores
from blossomrec.recommendation import user_histories
from command_line import prepare_and_train, refuse
from small_models import small_model
from small_options import SMALL

pytestmark = pytest.mark.usefixtures("one_thread", "wide_terminal")
K = 10


@pytest.fixture(scope="module")
def place(one_thread, tiny_events, tmp_path_factory):
    """A folder with events, their prepared log, and a run that was trained on it. Read only."""
    return prepare_and_train(tiny_events, tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def seeing(one_thread, kind_log):
    """A model that sees times, kinds and context."""
    seen = dict.fromkeys(("time_gap", "request_time", "event_kinds", "request_kind"), "on")
    return BlossomRec(**SMALL | seen | {"context": "on"}).fit(kind_log, progress=False)


def table(path) -> tuple[list, np.ndarray]:
    """Ids and vectors of a file, which holds lists of a fixed size."""
    frame = pl.read_parquet(path)
    assert frame.columns == ["id", "vector"]
    assert frame.schema["vector"] == pl.Array(pl.Float32, SMALL["hidden_size"])
    return frame["id"].to_list(), frame["vector"].to_numpy()


def best(out, users: list) -> dict:
    """The ``K`` best items of users, by the files alone."""
    (items, of_items), (known, of_users) = (
        table(out / "items.parquet"),
        table(out / "users.parquet"),
    )
    order = np.argsort(-(of_users @ of_items.T), axis=1, kind="stable")[:, :K]
    ranked = {user: [items[row] for row in rows] for user, rows in zip(known, order, strict=True)}
    return {user: ranked[user] for user in users}


def lists(frame: pl.DataFrame) -> dict:
    grouped = frame.group_by("user_id", maintain_order=True).agg("item_id")
    return dict(zip(grouped["user_id"].to_list(), grouped["item_id"].to_list(), strict=True))


def test_the_command_writes_vectors_that_rank_as_the_model(cli, place, tmp_path, monkeypatch):
    # Several parts of users and of items.
    monkeypatch.setattr(user_histories, "USERS_AT_ONCE", 16)
    monkeypatch.setattr(vectors, "ROWS_AT_ONCE", 32)
    out = tmp_path / "out"
    shown = cli("export", place / "run", out, "--to", "vectors", "--users", "all")
    names = ["export.json", "items.parquet", "users.parquet"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert all(f"{out / name} has " in shown for name in names)
    model = BlossomRec.from_pretrained(place / "run")
    expected = lists(model.recommend(k=K, filter_viewed=False))
    assert best(out, list(expected)) == expected
    assert table(out / "items.parquet")[0] == model.items.ids(range(model.items.size)).to_list()
    told = json.loads((out / "export.json").read_text())
    assert (told["to"], told["num_items"], told["num_users"]) == ("vectors", 80, 60)
    assert told["filter_viewed"] is True and len(told["run"]) == 12


def test_faiss_ranks_as_the_model(place, tmp_path):
    faiss = pytest.importorskip("faiss", reason="an index needs the extra ann")
    model, out = BlossomRec.from_pretrained(place / "run"), tmp_path / "out"
    model.export(out, "vectors", users=[1001, 1004, 1178], index="Flat")
    items, _ = table(out / "items.parquet")
    users, of_users = table(out / "users.parquet")
    index = faiss.read_index(str(out / "items.faiss"))
    _, rows = index.search(of_users, K)
    found = {user: [items[row] for row in each] for user, each in zip(users, rows, strict=True)}
    assert found == lists(model.recommend([1001, 1004, 1178], K, filter_viewed=False))
    with pytest.raises(ConfigError, match="index is 'Nonsense': faiss cannot make it"):
        model.export(tmp_path / "other", "vectors", index="Nonsense")
    assert not (tmp_path / "other").exists()


def test_what_is_asked_is_in_the_vectors_of_users(seeing, tmp_path):
    moment, found = 1_800_000_000, []
    for kind in (None, "buy"):
        out = tmp_path / str(kind)
        seeing.export(out, "vectors", users="all", at=moment, kind=kind)
        expected = lists(seeing.recommend(k=K, filter_viewed=False, at=moment, kind=kind))
        assert best(out, list(expected)) == expected
        found.append(table(out / "users.parquet")[1])
    assert not np.allclose(*found)


def test_users_without_a_known_item_have_no_vector(place, tiny_events, tmp_path):
    events = pl.DataFrame({"user_id": [1, 1, 2], "item_id": [50_003, 9, 9], "timestamp": [1, 2, 3]})
    log = EventLog.prepare(events, tmp_path / "log")
    model = BlossomRec.from_pretrained(place / "run", log)
    with pytest.warns(UserWarning):
        told = model.export(tmp_path / "out", "vectors", users="all")
    assert told["num_users"] == 1 and table(tmp_path / "out" / "users.parquet")[0] == [1]
    with (
        pytest.warns(UserWarning),
        pytest.raises(DataError, match="no user has an event of an item that the model knows"),
    ):
        model.export(tmp_path / "none", "vectors", users=[2])


def test_users_who_are_not_in_the_log_are_refused_or_left_out(cli, capsys, place, tmp_path):
    path, out = tmp_path / "ids.txt", tmp_path / "out"
    path.write_text("1004\n7\n1001\n")
    asked = ["export", place / "run", out, "--to", "vectors", "--users", path]
    refuse(capsys, *asked, words=["line 2: '7'", "--unknown skip leaves them out"])
    assert not out.exists()
    cli(*asked, "--unknown", "skip")
    assert table(out / "users.parquet")[0] == [1001, 1004]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--to", "vectors", "--k", 5], "k is 5: it is for --to onnx and --to torch"),
        (["--to", "torch", "--users", "all"], "to is 'torch': users and index are for"),
        (["--to", "torch", "--index", "Flat"], "to is 'torch': users and index are for"),
        (["--to", "torch", "--k", 81], "k is 81: the model knows 80 items"),
        (["--to", "torch", "--k", 0], "k is 0: it must be at least 1"),
        (["--to", "vectors", "--at", "5"], "at is '5': it is for users alone"),
        (["--to", "vectors", "--users", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--to", "vectors", "--users", "all", "--kind", "buy"], "kind is 'buy'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_and_nothing_is_written(capsys, place, tmp_path, flags, words):
    refuse(capsys, "export", place / "run", tmp_path / "out", *flags, words=[words])
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(place, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(RunError, match="is there: choose another folder"):
        BlossomRec.from_pretrained(place / "run").export(tmp_path, "vectors")
    # There is no "new", so that nothing but its path says what is meant.
    with pytest.raises(RunError, match="is there: choose another folder"):
        BlossomRec.from_pretrained(place / "run").export(tmp_path / "new" / "..", "vectors")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == "x"


def test_the_folder_one_is_in_is_not_replaced(cli, capsys, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (".", tmp_path, "new/.."):
        words = [f"{out} is the folder you are in"]
        refuse(capsys, "export", place / "run", out, "--to", "vectors", words=words)
    assert not list(Path().iterdir())
    (tmp_path / "empty").mkdir()
    for out in ("made/on/the/way", "empty", "empty/../other/"):
        cli("export", place / "run", out, "--to", "vectors")
        assert {path.name for path in Path(out).iterdir()} == {"export.json", "items.parquet"}
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"empty", "made", "other"}


def test_scores_that_are_no_products_are_refused():
    with pytest.raises(ConfigError, match=r"model.repeats is 'on'"):
        refuse_other_scores(small_model(repeats="on"))
