"""The model of RecTools: ids, weights, times and users as RecTools means them."""

from __future__ import annotations

import importlib
import json
from importlib.util import find_spec

import numpy as np
import polars as pl
import pytest

from blossomrec.config import with_options
from blossomrec.data.split import make_split
from blossomrec.errors import ConfigError, DataError, MissingExtraError
from small_options import SMALL

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = find_spec("rectools") is not None


@pytest.mark.skipif(HERE, reason="RecTools is installed")
def test_without_rectools_the_line_that_installs_it_is_told():
    with pytest.raises(MissingExtraError, match=r"pip install 'blossomrec\[rectools\]'"):
        importlib.import_module("blossomrec.contrib.rectools")


if HERE:
    import pandas as pd
    from rectools.dataset import Dataset
    from rectools.exceptions import NotFittedError
    from rectools.metrics import HitRate, Recall
    from rectools.model_selection import LastNSplitter, cross_validate
    from rectools.models import PopularModel, model_from_config

    from blossomrec.contrib.rectools import BlossomRecModel
    from blossomrec.contrib.rectools.data import event_table, item_table, newest_share

needed = pytest.mark.skipif(not HERE, reason="RecTools is not installed")


def frame_of(events: pl.DataFrame, *, text: bool = False):
    """Events as RecTools takes them; ids as texts that differ from any row number."""
    columns = {name: events[name].to_numpy() for name in ("user_id", "item_id")}
    if text:
        columns = {
            name: np.array([f"{name[0]}{one}" for one in ids]) for name, ids in columns.items()
        }
    times = pd.to_datetime(events["timestamp"].to_numpy(), unit="s")
    return pd.DataFrame({**columns, "weight": 1.0, "datetime": times})


@pytest.fixture(scope="module", params=["numbers", "texts"])
def fitted(request, tiny_events):
    """A data set, and a model that was fitted on it. Read only."""
    dataset = Dataset.construct(frame_of(tiny_events, text=request.param == "texts"))
    return dataset, BlossomRecModel(**SMALL | {"epochs": 3}).fit(dataset)


@needed
class TestRecommending:
    def test_users_get_what_the_recommender_itself_gives(self, fitted):
        dataset, model = fitted
        users = dataset.user_id_map.external_ids[[5, 2, 9]]
        found = model.recommend(users, dataset, k=4, filter_viewed=True)
        assert found.columns.tolist() == ["user_id", "item_id", "score", "rank"]
        wanted = model.recommender.recommend(users, 4, filter_viewed=True)
        for name in ("user_id", "item_id", "rank"):
            assert found[name].tolist() == wanted[name].to_list()
        assert np.allclose(found["score"], wanted["score"])
        assert found["item_id"].dtype == dataset.item_id_map.external_dtype

    def test_one_user_gets_what_that_user_gets_among_others(self, fitted):
        dataset, model = fitted
        users = dataset.user_id_map.external_ids[:3]
        together = model.recommend(users, dataset, k=3, filter_viewed=False)
        for user in users:
            alone = model.recommend([user], dataset, k=3, filter_viewed=False)
            same = together[together["user_id"] == user].reset_index(drop=True)
            assert alone["item_id"].tolist() == same["item_id"].tolist()
            assert np.allclose(alone["score"], same["score"], atol=1e-5)

    def test_viewed_items_are_filtered_where_that_is_asked_for(self, fitted):
        dataset, model = fitted
        events = dataset.get_raw_interactions()
        user = events["user_id"].value_counts().index[0]
        viewed = set(events.loc[events["user_id"] == user, "item_id"])
        size = dataset.item_id_map.size
        left = model.recommend([user], dataset, k=size, filter_viewed=True)
        assert set(left["item_id"]) == set(dataset.item_id_map.external_ids) - viewed
        everything = model.recommend([user], dataset, k=size, filter_viewed=False)
        assert len(everything) == size

    def test_only_listed_items_are_recommended(self, fitted):
        dataset, model = fitted
        listed = dataset.item_id_map.external_ids[[3, 30, 60]]
        users = dataset.user_id_map.external_ids[:2]
        asked = {"dataset": dataset, "k": 5, "filter_viewed": False}
        found = model.recommend(users, items_to_recommend=listed, **asked)
        assert set(found["item_id"]) == set(listed) and len(found) == 6
        assert model.recommend(users, items_to_recommend=[], **asked).empty

    def test_a_user_who_came_later_is_asked_for_by_another_data_set(self, fitted):
        dataset, model = fitted
        events = dataset.get_raw_interactions()
        history = events[events["user_id"] == dataset.user_id_map.external_ids[0]].copy()
        history["user_id"] = "new" if events["user_id"].dtype == object else -5
        later = Dataset.construct(pd.concat([events, history]))
        new, old = history["user_id"].iloc[0], dataset.user_id_map.external_ids[0]
        found = model.recommend([new, old], later, k=3, filter_viewed=True)
        items = [found.loc[found["user_id"] == user, "item_id"].tolist() for user in (new, old)]
        assert items[0] == items[1] and len(items[0]) > 0

    def test_cold_users_are_refused_or_left_out_as_rectools_does(self, fitted):
        dataset, model = fitted
        events = dataset.get_raw_interactions()
        strange = events.head(1).copy()
        text = events["user_id"].dtype == object
        strange["user_id"], strange["item_id"] = ("odd", "odd") if text else (-7, -7)
        odd = Dataset.construct(pd.concat([events, strange]))
        known = dataset.user_id_map.external_ids[0]
        unseen = "nobody" if text else -9
        for cold in (strange["user_id"].iloc[0], unseen):
            asked = {"users": [known, cold], "dataset": odd, "k": 2, "filter_viewed": False}
            with pytest.raises(ValueError, match="cold"):
                model.recommend(**asked)
            found = model.recommend(**asked, on_unsupported_targets="ignore")
            assert set(found["user_id"]) == {known}

    def test_similar_items_are_those_of_the_recommender(self, fitted):
        dataset, model = fitted
        targets = np.sort(dataset.item_id_map.external_ids)[[4, 40]]
        found = model.recommend_to_items(targets, dataset, k=3)
        assert found.columns.tolist() == ["target_item_id", "item_id", "score", "rank"]
        wanted = model.recommender.similar_items(targets, 3)
        told = set(zip(found["target_item_id"], found["item_id"], found["rank"], strict=True))
        assert told == set(wanted.select("item_id", "similar_id", "rank").rows())
        with_itself = model.recommend_to_items(targets, dataset, k=3, filter_itself=False)
        first = with_itself[with_itself["rank"] == 1]
        assert (first["target_item_id"] == first["item_id"]).all()
        listed = dataset.item_id_map.external_ids[:6]
        few = model.recommend_to_items(targets, dataset, k=2, items_to_recommend=listed)
        assert len(few) == 4 and set(few["item_id"]) <= set(listed)

    def test_a_model_must_be_fitted(self, fitted):
        dataset, _ = fitted
        with pytest.raises(NotFittedError):
            BlossomRecModel(**SMALL).recommend([1], dataset, k=1, filter_viewed=True)

    def test_a_pickled_model_recommends_the_same(self, fitted):
        dataset, model = fitted
        asked = (dataset.user_id_map.external_ids[:4], dataset, 3, True)
        again = BlossomRecModel.loads(model.dumps())
        assert again.recommend(*asked).equals(model.recommend(*asked))
        # And the model at hand goes on as it was.
        assert model.recommender.log is not None


@needed
class TestData:
    def test_weights_count_where_there_are_any(self, tiny_events):
        frame = frame_of(tiny_events)
        assert "weight" not in event_table(Dataset.construct(frame)).columns
        frame["weight"] = np.arange(len(frame)) % 3
        dataset = Dataset.construct(frame)
        log = BlossomRecModel(**SMALL).fit(dataset).recommender.log
        assert log.summary["weights"]
        assert sorted(log.weights) == sorted(frame["weight"])

    def test_ids_that_no_log_has_are_named(self, tiny_events):
        frame = frame_of(tiny_events)
        frame["item_id"] = frame["item_id"].astype(float) + 0.5
        with pytest.raises(DataError, match=r"item_id\[0\] is 5\d+\.5"):
            event_table(Dataset.construct(frame))
        frame["item_id"] = [str(n) if n % 2 else n for n in range(len(frame))]
        with pytest.raises(DataError, match="item_id holds whole numbers and texts"):
            event_table(Dataset.construct(frame))

    def test_features_become_a_table_of_items(self, tiny_events):
        items = tiny_events["item_id"].unique().sort()
        new = int(items.max()) + 1
        told = [(int(item), "year", 1990 + n) for n, item in enumerate(items)]
        told += [(int(item), "genre", "ab"[n % 2]) for n, item in enumerate(items)]
        told += [(new, "genre", "a"), (new, "genre", "b")]
        features = pd.DataFrame(told, columns=["id", "feature", "value"])
        dataset = Dataset.construct(
            frame_of(tiny_events), item_features_df=features, cat_item_features=["genre"]
        )
        table, kinds = item_table(dataset)
        assert set(kinds) == {"year=number", "genre=category"}
        by_id = {row["item_id"]: row for row in table.to_dicts()}
        assert by_id[items[3]] == {"item_id": items[3], "year": 1993.0, "genre": ["b"]}
        assert by_id[new]["genre"] == ["a", "b"]
        model = BlossomRecModel(**SMALL | {"content": "auto"}).fit(dataset)
        assert model.recommender.config.model.content == "on"
        user = dataset.user_id_map.external_ids[0]
        found = model.recommend([user], dataset, k=1, filter_viewed=False, items_to_recommend=[new])
        assert found["item_id"].tolist() == [new]
        dense = pd.DataFrame({"id": items, "price": np.arange(len(items)) / 2})
        dense = Dataset.construct(
            frame_of(tiny_events), item_features_df=dense, make_dense_item_features=True
        )
        table, kinds = item_table(dense)
        assert kinds == ("price=number",)
        assert dict(table.rows())[items[5]] == 2.5

    def test_without_holding_out_all_but_the_newest_are_trained_on(self, tiny_events):
        dataset = Dataset.construct(frame_of(tiny_events))
        model = BlossomRecModel(hold_out=False, **SMALL).fit(dataset)
        recommender = model.recommender
        split = make_split(recommender.log, recommender.config.evaluation)
        newest = (tiny_events["timestamp"] == tiny_events["timestamp"].max()).sum()
        assert split.train_end.sum() == len(tiny_events) - newest
        assert recommender.training.epochs == SMALL["epochs"]
        alone = Dataset.construct(frame_of(tiny_events.unique("user_id")))
        with pytest.raises(DataError, match="interactions at two times"):
            newest_share(alone)


@needed
class TestConfig:
    def test_a_model_is_made_again_from_its_configuration(self):
        model = BlossomRecModel(hold_out=False, verbose=1, **SMALL)
        told = json.loads(json.dumps(model.get_config(simple_types=True)))
        for again in (BlossomRecModel.from_config(told), model_from_config(told)):
            assert again.get_config() == model.get_config()
        params = model.get_params()
        assert params["options.max_len"] == SMALL["max_len"]
        assert BlossomRecModel.from_params(params).get_params() == params

    def test_wrong_options_are_refused_at_once(self):
        for options, told in (
            ({"session_max_len": 50}, "unknown option session_max_len"),
            ({"epochs": 0}, "epochs is 0"),
            ({"hold_out": False, "split": "global-time"}, "split is 'global-time'"),
        ):
            with pytest.raises(ConfigError, match=told):
                BlossomRecModel(**options)


@needed
def test_cross_validation_measures_it_beside_other_models(tiny_events):
    dataset = Dataset.construct(frame_of(tiny_events))
    models = {
        "popular": PopularModel(),
        "held out": BlossomRecModel(**SMALL | {"epochs": 8}),
        "all": BlossomRecModel(hold_out=False, **SMALL | {"epochs": 8}),
    }
    metrics = {"recall": Recall(5), "hits": HitRate(5)}
    told = cross_validate(
        dataset, LastNSplitter(n=1, n_splits=2), metrics, models, k=5, filter_viewed=True
    )
    found = pd.DataFrame(told["metrics"])
    assert found.groupby("model").size().to_dict() == dict.fromkeys(models, 2)
    means = found.groupby("model")["recall"].mean()
    # Its users walk around a ring of items: what comes next is in the history, not in the counts.
    assert means["held out"] > means["popular"] and means["all"] > means["popular"]
    assert np.allclose(found["recall"], found["hits"])


@needed
def test_options_are_those_of_the_recommender(tiny_events):
    model = BlossomRecModel(**SMALL).fit(Dataset.construct(frame_of(tiny_events)))
    assert with_options(model.recommender.config, SMALL) == model.recommender.config
