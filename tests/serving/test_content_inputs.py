"""Content of items, from the table that is prepared to what is recommended and saved."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from serving_runs import Server

from blossomrec import BlossomRec, EventLog
from blossomrec.config import ModelConfig
from blossomrec.data.batch import pack
from blossomrec.data.features import FeatureTable, Numbers, Titles
from blossomrec.data.fields import Tables
from blossomrec.errors import ConfigError, DataError, RunError
from blossomrec.models import build_model
from blossomrec.run.description import read_run_config
from blossomrec.run.tables import open_item_table
from blossomrec.run.weights import load_model
from small_options import MODEL


def films(log: EventLog) -> pl.DataFrame:
    """A genre for every item of a log, and two items that nobody has met."""
    ids = log.item_vocabulary.read().to_list()
    genres = [f"genre {index % 4}" for index in range(len(ids))]
    return pl.DataFrame(
        {
            "item_id": [*ids, 990_001, 990_002],
            "title": [f"film {one}" for one in ids] + ["new", "newer"],
            "genre": [*genres, "genre 1", "genre 2|genre 3"],
        }
    )


@pytest.fixture(scope="module")
def content_log(tiny_events, tiny_log, tmp_path_factory) -> Any:
    folder = tmp_path_factory.mktemp("content") / "log"
    return EventLog.prepare(tiny_events, folder, items=films(tiny_log))


@pytest.fixture(scope="module")
def fitted(content_log, tmp_path_factory) -> tuple[Any, Any]:
    run = tmp_path_factory.mktemp("content") / "run"
    options = MODEL | {"content": "auto", "epochs": 2, "dropout": 0.1, "id_dropout": 0.3}
    return BlossomRec(**options).fit(content_log, run, progress=False), run


def test_items_without_events_are_the_last_of_the_catalogue(content_log, tiny_log):
    assert content_log.num_items == tiny_log.num_items + 2
    assert content_log.item_vocabulary.ids(range(tiny_log.num_items, 82)).to_list() == [
        990_001,
        990_002,
    ]
    assert content_log.summary["items_without_events"] == 2
    titles = content_log.item_features.titles
    assert [titles[row] for row in (80, 81)] == ["new", "newer"]
    assert content_log.identity["items"] == 82
    assert content_log.digest != tiny_log.digest


def test_items_that_a_filter_drops_stay_out(tiny_events, tiny_log):
    log = EventLog.prepare(tiny_events, items=films(tiny_log), min_item_events=20)
    ids = set(log.item_vocabulary.read().to_list())
    assert {990_001, 990_002} <= ids
    counts = tiny_events.group_by("item_id").len()
    few = set(counts.filter(pl.col("len") < 20)["item_id"].to_list())
    assert few and not few & ids


def test_ids_that_are_no_items_are_refused(tiny_events):
    with pytest.raises(DataError, match="none of its 2 ids, such as 7000001, is that of an event"):
        EventLog.prepare(
            tiny_events,
            items=pl.DataFrame({"item_id": [7000001, 2]}).with_columns(
                item_id=pl.Series([7000001, 7000002]), genre=pl.Series(["a", "b"])
            ),
        )
    texts = pl.DataFrame({"item_id": ["a", "b"], "genre": ["x", "y"]})
    with pytest.raises(DataError, match=r"'item_id', row 1: 'a' is no id of an item: .*integers"):
        EventLog.prepare(tiny_events, items=texts)


def test_a_log_with_a_damaged_table_is_refused(tiny_events, tiny_log, tmp_path):
    log = EventLog.prepare(tiny_events, tmp_path / "log", items=films(tiny_log))
    (table,) = (tmp_path / "log" / "items").glob("generation-*/features/features.json")
    table.unlink()
    with pytest.raises(DataError, match=r"features is not a table of features"):
        EventLog.open(log.folder)


def test_items_without_events_are_recommended_and_similar(fitted):
    recommender, _ = fitted
    some = recommender.items.ids([0, 1, 2])
    found = recommender.recommend_history(some, k=82, filter_viewed=False)
    assert {990_001, 990_002} <= set(found["item_id"].to_list())
    similar = recommender.similar_items([990_001], k=81)
    assert np.isfinite(similar["score"].to_numpy()).all()


def test_items_without_events_have_no_id_but_content(fitted):
    recommender, _ = fitted
    model = recommender.model
    assert model.trained.sum() == 80 and not model.trained[80:].any()
    before = model.item_vectors().clone()
    with torch.no_grad():
        model.item_embeddings.weight[80:] += 1
    model.train()
    model.eval()
    torch.testing.assert_close(model.item_vectors(), before)


def test_a_run_has_its_table_and_needs_no_log(fitted, tmp_path):
    recommender, run = fitted
    recommender.save_pretrained(tmp_path / "model")
    loaded = BlossomRec.from_pretrained(tmp_path / "model", device="cpu")
    some = recommender.items.ids([3, 4])
    one, other = (each.recommend_history(some, k=5) for each in (recommender, loaded))
    assert one.equals(other)
    assert read_run_config(run).config.model.content == "on"
    (tmp_path / "model" / "features" / "features.json").unlink()
    with pytest.raises(RunError, match="features is not a table of features"):
        load_model(tmp_path / "model")


def test_another_table_is_noticed(fitted, tmp_path):
    recommender, _ = fitted
    recommender.save_pretrained(tmp_path / "model")
    table = FeatureTable({"x": Numbers(np.zeros(82, np.float32))}, 82)
    table.save(tmp_path / "model" / "features")
    with pytest.raises(RunError, match="features/ does not belong to config"):
        load_model(tmp_path / "model")


def test_a_share_of_the_items_goes_without_id_in_training_alone(content_log):
    config = ModelConfig(**MODEL | {"content": "on", "id_dropout": 0.5})
    model: Any = build_model(config, content_log.num_items, content_log.tables)
    content = model.content().detach()
    model.train()
    alone = [(model.item_vectors() == content).all(1).sum().item() for _ in range(20)]
    assert 20 < np.mean(alone) < 60 and len(set(alone)) > 1
    model.eval()
    assert not (model.item_vectors() == content).all(1).any()


@pytest.mark.parametrize("backbone", ["sasrec", "bert4rec", "gru4rec"])
def test_every_backbone_sees_content_at_input_and_output(content_log, backbone):
    config = ModelConfig(**MODEL | {"content": "on", "backbone": backbone})
    torch.manual_seed(0)
    model: Any = build_model(config, content_log.num_items, content_log.tables).eval()
    batch = pack([np.array([3, 81, 5]), np.array([80, 7])])

    def scores():
        model.train()
        model.eval()
        return model.scores(model.queries(batch), 0, content_log.num_items)

    before = scores()
    # Of a genre that both histories have, items without events included.
    with torch.no_grad():
        model.content.categories[0].bag.weight.mul_(30)
    after = scores()
    assert before.shape == after.shape == (2, 82)
    assert not torch.allclose(before[:, 80:], after[:, 80:])
    assert model.encode(batch).catalogue.shape == (82, config.hidden_size)


def test_the_loss_reaches_categories_and_ids(content_log):
    config = ModelConfig(**MODEL | {"content": "on"})
    model: Any = build_model(config, content_log.num_items, content_log.tables)
    model.item_vectors().square().sum().backward()
    assert model.item_embeddings.weight.grad.any()
    assert all(parameter.grad.any() for parameter in model.content.parameters())


def test_a_server_knows_the_titles_of_the_table(fitted, tmp_path):
    _, run = fitted
    with Server(run, tmp_path / "events.db") as server:
        answer = server.post("/v1/titles", {"items": [990_001, 990_003]})
    assert answer == {"known": True, "titles": ["new", None]}


def test_a_model_without_a_table_is_refused():
    config = ModelConfig(**MODEL | {"content": "on"})
    with pytest.raises(ConfigError, match="a table of 9 items is needed, none was given"):
        build_model(config, 9)
    table = FeatureTable({"title": Titles.of(["a"])}, 1)
    with pytest.raises(ConfigError, match="needed, one of 1 rows was given"):
        build_model(config, 9, Tables(items=table))


def test_content_stays_out_where_it_is_switched_off(content_log, tmp_path):
    options = MODEL | {"epochs": 1, "content": "off"}
    recommender: Any = BlossomRec(**options).fit(content_log, tmp_path / "run", progress=False)
    assert recommender.model.content is None
    assert dataclasses.asdict(recommender.config)["model"]["content"] == "off"
    # What a run keeps of the table is for rules; its model, opened again, sees none of it.
    kept = open_item_table(tmp_path / "run", read_run_config(tmp_path / "run"))
    assert kept is not None
    assert kept.digest == content_log.item_features.digest
    opened: Any = BlossomRec.from_pretrained(tmp_path / "run")
    assert opened.model.content is None and opened.model.features is None
