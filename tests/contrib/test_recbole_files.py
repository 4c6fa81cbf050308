"""RecBole's atomic files and settings, without RecBole."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from blossomrec.contrib.recbole import prepare_dataset, read_settings
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError
from command_line import succeed

INTER = """user_id:token	item_id:token	rating:float	shop:token	timestamp:float
1	10	4.5	3	881250949
1	11	3	3	881250950
2	10	5	4	881250949.5
2	12	1	4	881250951
"""
TYPES = ("title:token_seq", "year:token", "genres:token_seq", "price:float", "vector:float_seq")
ITEM = (
    "\t".join(("item_id:token", *TYPES))
    + """
10	Toy Story	1995	Animation Children's	1.5	0.5 1
11	Heat	1995	Crime	2	0 -1e-3
12	Alien	1979		3	
13	Ran	1979	War  Drama	4	1 1
"""
)
USER = "user_id:token\tage:token\tscore:float\n1\t24\t0.5\n2\t53\t1.5\n"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    for suffix, text in (("inter", INTER), ("item", ITEM), ("user", USER)):
        (folder / f"films.{suffix}").write_text(text)
    return folder


class TestFiles:
    def test_a_folder_becomes_a_log_with_its_tables(self, folder, tmp_path):
        log = prepare_dataset(folder, tmp_path / "log", context=("rating", "shop"))
        assert (log.num_users, log.num_items, log.num_events) == (2, 4, 4)
        kinds = {one["name"]: one["kind"] for one in log.summary["item_table"]}
        assert kinds == {
            "title": "title",
            "year": "category",
            "genres": "category",
            "price": "number",
            "vector": "vector",
        }
        items: Any = log.item_features
        row = log.item_vocabulary.rows([13, 10, 12])
        assert [items["genres"][each] for each in row] == [
            ["War", "Drama"],
            ["Animation", "Children's"],
            [],
        ]
        assert items.titles[row[1]] == "Toy Story" and items["year"][row[1]] == ["1995"]
        assert items["vector"].values[row[1]].tolist() == [0.5, 1]
        kinds = {one["name"]: one["kind"] for one in log.summary["user_table"]}
        assert kinds == {"age": "category", "score": "number"}
        assert {one.name: one.kind for one in log.fields.context} == {
            "rating": "number",
            "shop": "category",
        }

    def test_the_command_line_reads_the_files_as_they_are(self, folder, tmp_path, capsys):
        succeed(
            capsys,
            "prepare",
            folder / "films.inter",
            tmp_path / "log",
            "--items",
            folder / "films.item",
        )
        log = EventLog.open(tmp_path / "log")
        assert log.num_items == 4 and log.item_vocabulary.read().dtype == pl.Int64

    def test_kinds_that_are_given_come_before_declared_ones(self, folder):
        given = ("genres=title", "year=number", "vector=none")
        log = prepare_dataset(folder, item_kinds=given, users=None)
        items: Any = log.item_features
        assert log.user_features is None and "vector" not in items
        row = int(log.item_vocabulary.rows([10])[0])
        assert items["genres"][row] == "Animation Children's"
        assert items["year"].values[row] == 1995

    def test_what_is_appended_is_split_in_the_same_way(self, folder, tmp_path):
        log = prepare_dataset(folder, tmp_path / "log")
        (tmp_path / "new.inter").write_text(INTER.splitlines()[0] + "\n1\t14\t1\t3\t881250999\n")
        (tmp_path / "new.item").write_text(
            ITEM.splitlines()[0] + "\n14\tTwo Words\t2001\tWar Crime\t1\t2 2\n"
        )
        log.append(tmp_path / "new.inter", items=tmp_path / "new.item")
        log = EventLog.open(tmp_path / "log")
        items: Any = log.item_features
        row = int(log.item_vocabulary.rows([14])[0])
        assert items["genres"][row] == ["War", "Crime"]
        assert items["vector"].values[row].tolist() == [2, 2]

    def test_faults_are_named_with_their_place(self, folder):
        path = folder / "films.item"
        path.write_text(ITEM.replace("0 -1e-3", "0 one"))
        with pytest.raises(DataError, match=r"films.item, column 'vector', row 2: '0 one' is not"):
            prepare_dataset(folder)
        path.write_text(ITEM.replace("\t2\t0", "\ttwo\t0"))
        with pytest.raises(DataError, match=r"column 'price', row 2: 'two' is not a number"):
            prepare_dataset(folder)
        (folder / "films.inter").write_text(
            "user_id:token\titem_id_list:token_seq\titem_id:token\n"
        )
        with pytest.raises(DataError, match="'item_id_list': its rows are histories"):
            prepare_dataset(folder)
        (folder / "films.inter").rename(folder / "a.inter")
        (folder / "b.inter").write_text(INTER)
        with pytest.raises(DataError, match=r"films.inter, or a single .inter .* a.inter, b.inter"):
            prepare_dataset(folder)


YAML = """
model: SASRec
dataset: films
gpu_id: '0'
USER_ID_FIELD: session_id
load_col: {inter: [session_id, item_id, timestamp]}
user_inter_num_interval: "[5,inf)"
item_inter_num_interval: "(4, inf)"
MAX_ITEM_LIST_LENGTH: 50
hidden_size: 64
n_layers: 3
n_heads: 4
hidden_dropout_prob: 0.5
loss_type: BPR
train_neg_sample_args: ~
epochs: 30
train_batch_size: 2048
learning_rate: 1e-4
stopping_step: 7
clip_grad_norm: {max_norm: 5, norm_type: 2}
eval_args:
  split: {LS: valid_and_test}
  order: TO
  group_by: user
  mode: {valid: uni100, test: uni100}
topk: [5, 50]
metrics: [Recall, NDCG]
valid_metric: NDCG@10
repeatable: True
"""


class TestSettings:
    def test_known_settings_become_options(self, tmp_path):
        (tmp_path / "sasrec.yaml").write_text(YAML)
        settings = read_settings(tmp_path / "sasrec.yaml")
        model, training = settings.config.model, settings.config.training
        assert (model.backbone, model.attention, model.max_len) == ("sasrec", "full", 50)
        assert (model.hidden_size, model.layers, model.heads, model.dropout) == (64, 3, 4, 0.5)
        assert (training.loss, training.epochs, training.tokens_per_batch) == ("bpr", 30, 2048)
        assert (training.learning_rate, training.patience, training.clip_norm) == (1e-4, 7, 5.0)
        told = settings.config.evaluation
        assert (told.split, told.ranking, told.ks) == ("leave-one-out", "uni100", (5, 50))
        assert told.filter_seen == "no"
        assert settings.prepare == {
            "user": "session_id",
            "min_user_events": 5,
            "min_item_events": 5,
        }
        assert settings.without_effect == ("dataset", "gpu_id", "load_col")

    def test_a_split_by_shares_of_time_is_one_here(self):
        args = {"split": {"RS": [8, 1, 1]}, "order": "TO", "group_by": "none"}
        told = read_settings({"eval_args": args}).config.evaluation
        assert (told.split, told.valid_share, told.test_share) == ("global-time", 0.1, 0.1)

    def test_all_that_has_no_counterpart_is_told_at_once(self, tmp_path):
        text = "attn_dropout_prob: 0.5\nvalid_metric: MRR@10\nmodel: NARM\nn_layers: 2\n"
        text += "eval_args: {split: {RS: [8,1,1]}, order: RO}\nrm_dup_inter: first\n"
        (tmp_path / "odd.yaml").write_text(text)
        with pytest.raises(ConfigError) as caught:
            read_settings(tmp_path / "odd.yaml")
        told = str(caught.value)
        assert told.startswith(f"{tmp_path / 'odd.yaml'}: ") and "n_layers" not in told
        for part in (
            "attn_dropout_prob (0.5)",
            "valid_metric ('MRR@10': known are NDCG@10)",
            "model ('NARM': known are SASRec",
            "order RO is none in time",
            "rm_dup_inter ('first')",
        ):
            assert part in told
        ignored = ["attn_dropout_prob", "valid_metric", "model", "eval_args", "rm_dup_inter"]
        assert read_settings(tmp_path / "odd.yaml", ignore=ignored).config.model.layers == 2

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            ({"epochs": 0}, "epochs is 0"),
            ({"hidden_size": 10, "n_heads": 4}, "hidden_size is 10"),
            ({"topk": ["ten"]}, "ks"),
            ({"user_inter_num_interval": "[5,10]"}, r"\[5,inf\)"),
            ({"clip_grad_norm": {"max_norm": 1, "norm_type": 1}}, "max_norm"),
            ({"eval_args": {"mode": {"valid": "full", "test": "uni100"}}}, "the same for all"),
            ({"eval_args": {"split": {"RS": [8, 1, 1]}}}, "group_by none"),
            ({"eval_args": {"mode": {"valid": ["full"]}}}, "known are the modes"),
            ({"eval_args": {"split": {"RS": ["a", 1, 1]}, "group_by": None}}, "three shares"),
            ({"eval_args": {"split": {"RS": [0, 0, 0]}, "group_by": None}}, "three shares"),
            ({"clip_grad_norm": {"max_norm": "five"}}, "clip_norm is 'five'"),
            ({"metrics": ["Recall", "GAUC"]}, "known are Recall"),
        ],
    )
    def test_wrong_values_are_refused(self, settings, told):
        with pytest.raises(ConfigError, match=told):
            read_settings(settings)
