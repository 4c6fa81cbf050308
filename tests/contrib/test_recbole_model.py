"""The model of RecBole: its scores are those of ours, and RecBole trains it from a file."""

from __future__ import annotations

import importlib
import random
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from blossomrec.data.batch import pack
from blossomrec.errors import ConfigError, MissingExtraError
from small_options import MODEL

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = find_spec("recbole") is not None
NAME = "blossomrec.contrib.recbole.model"


@pytest.mark.skipif(HERE, reason="RecBole is installed")
def test_without_recbole_the_line_that_installs_it_is_told():
    with pytest.raises(MissingExtraError, match=r"pip install 'blossomrec\[recbole\]'"):
        importlib.import_module(NAME)


if HERE:
    from blossomrec.contrib.recbole.model import BlossomRec, model_config

needed = pytest.mark.skipif(not HERE, reason="RecBole is not installed")
BLOCKS = {name: MODEL[name] for name in ("block_size", "top_n", "window", "compress_window")}
SETTINGS: dict[str, Any] = {
    "MAX_ITEM_LIST_LENGTH": 20,
    "hidden_size": 16,
    "n_layers": 1,
    "n_heads": 2,
    "inner_size": 16,
    "hidden_dropout_prob": 0.0,
    "hidden_act": "gelu",
    "loss_type": "CE",
    **BLOCKS,
}
FIELDS = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "NEG_PREFIX": "neg_",
    "device": "cpu",
}
ITEMS = 30


def made(**others: Any):
    torch.manual_seed(0)
    return BlossomRec(SETTINGS | FIELDS | others, SimpleNamespace(num=lambda _: ITEMS + 1))


def sample():
    """Three histories of items from 1 on, padded at their ends, with targets."""
    return {
        "item_id_list": torch.tensor([[3, 1, 4, 1], [5, 0, 0, 0], [30, 2, 6, 0]]),
        "item_length": torch.tensor([4, 1, 3]),
        "item_id": torch.tensor([5, 30, 1]),
        "neg_item_id": torch.tensor([9, 2, 8]),
    }


@needed
class TestModel:
    def test_scores_are_those_of_the_packed_histories(self):
        model = made().eval()
        ours = model.sequence_model
        queries = ours.queries(pack([[2, 0, 3, 0], [4], [29, 1, 5]]))
        scores = model.full_sort_predict(sample())
        assert scores.shape == (3, ITEMS + 1) and (scores[:, 0] == -torch.inf).all()
        torch.testing.assert_close(scores[:, 1:], ours.scores(queries, 0, ITEMS))
        wanted = scores.gather(1, sample()["item_id"][:, None])[:, 0]
        torch.testing.assert_close(model.predict(sample()), wanted)

    def test_losses_are_those_of_the_scores(self):
        scores = made().eval().full_sort_predict(sample())
        likely = scores.log_softmax(-1).gather(1, sample()["item_id"][:, None])
        torch.testing.assert_close(made().eval().calculate_loss(sample()), -likely.mean())
        target, other = (
            scores.gather(1, sample()[name][:, None]) for name in ("item_id", "neg_item_id")
        )
        loss = made(loss_type="BPR").eval().calculate_loss(sample())
        torch.testing.assert_close(loss, -(target - other).sigmoid().log().mean())

    def test_in_training_the_selector_is_distilled(self):
        model = made()
        hidden, selector_loss = model.forward(
            *[sample()[n] for n in ("item_id_list", "item_length")]
        )
        wanted = torch.nn.functional.cross_entropy(
            hidden @ model.sequence_model.output_weight().T, sample()["item_id"] - 1
        )
        assert selector_loss is not None
        torch.testing.assert_close(model.calculate_loss(sample()), wanted + selector_loss)

    def test_settings_of_both_make_the_architecture(self):
        config = model_config(SETTINGS | {"attention": "full", "kv_heads": 1})
        assert (config.max_len, config.layers, config.heads, config.kv_heads) == (20, 1, 2, 1)
        assert config.attention == "full" and config.block_size == MODEL["block_size"]
        assert config.time_gap == config.repeats == "off"
        with pytest.raises(ConfigError, match="content is 'on': a model of RecBole sees ids alone"):
            model_config(SETTINGS | {"content": "on"})
        with pytest.raises(ConfigError, match="hidden_act is 'relu': known are gelu"):
            model_config(SETTINGS | {"hidden_act": "relu"})
        with pytest.raises(ConfigError, match="top_n is 0"):
            made(top_n=0)
        with pytest.raises(ConfigError, match="loss_type is 'MSE'"):
            made(loss_type="MSE")


@needed
def test_recbole_trains_it_from_a_file(tmp_path, monkeypatch):
    from recbole.quick_start import run_recbole

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["recbole"])
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(40):
        start = random.Random(user).randrange(ITEMS)
        lines += [f"u{user}\ti{(start + step) % ITEMS}\t{step + 1}" for step in range(12)]
    (tmp_path / "walks").mkdir()
    (tmp_path / "walks" / "walks.inter").write_text("\n".join([*lines, ""]))
    told = run_recbole(
        model="BlossomRec",
        dataset="walks",
        saved=False,
        config_dict={
            **SETTINGS,
            "data_path": str(tmp_path),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
            "train_neg_sample_args": None,
            "repeatable": True,
            "epochs": 4,
            "learning_rate": 1e-2,
            "train_batch_size": 64,
            "use_gpu": False,
            "show_progress": False,
        },
    )
    # Ten of thirty items at random hold a target in a third of all cases.
    assert told["test_result"]["recall@10"] > 0.6
