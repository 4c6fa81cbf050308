"""Small models and packed histories for the tests of models and reports."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from blossomrec.config import ModelConfig
from blossomrec.data.batch import Batch, pack
from blossomrec.data.fields import Tables
from blossomrec.models.building import build_model
from blossomrec.models.sequence import SequenceModel

NUM_ITEMS = 50
# The window reaches as far in two layers as tests look.
ATTENTIONS = {"blossom": {}, "full": {}, "window": {"window": 6}, "linrec": {}, "hstu": {}}
TRANSFORMERS = [
    pytest.param(
        {"backbone": backbone, "attention": attention, "norm": norm} | ATTENTIONS[attention],
        id="-".join(names),
    )
    for names in itertools.product(("sasrec", "bert4rec"), ATTENTIONS, ("pre", "post"))
    for backbone, attention, norm in [names]
]
TRANSFORMERS += [
    pytest.param(
        {"backbone": backbone, "attention": "blossom", "fusion": "union", "near_bias": bias},
        id=f"{backbone}-union",
    )
    for backbone, bias in (("sasrec", "on"), ("bert4rec", "off"))
]
ALL_MODELS = TRANSFORMERS + [
    pytest.param({"backbone": "gru4rec", "norm": norm}, id=f"gru4rec-{norm}")
    for norm in ("pre", "post")
]
ALL_MODELS += [
    pytest.param({"backbone": "mamba4rec", "norm": norm, "state_size": 5}, id=f"mamba4rec-{norm}")
    for norm in ("pre", "post")
]
ALL_MODELS += [pytest.param({"backbone": "hstu"}, id="hstu")]


def small_config(**options) -> ModelConfig:
    """Blocks of 4 events, so that short histories reach every part of the attention."""
    defaults = {
        "max_len": 40,
        "hidden_size": 16,
        "heads": 4,
        "kv_heads": 2,
        "inner_size": 24,
        "block_size": 4,
        "top_n": 2,
        "window": 2,
        "compress_window": 8,
    }
    return ModelConfig(**defaults | options)


def small_model(tables: Tables | None = None, **options) -> SequenceModel:
    """A seeded model in evaluation mode, with embeddings large enough for attention to matter."""
    torch.manual_seed(0)
    model = build_model(small_config(**options), NUM_ITEMS, tables).eval()
    with torch.no_grad():
        model.item_embeddings.weight.mul_(10)
    return model


def random_histories(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, NUM_ITEMS, length) for length in lengths]


def batch_of(*histories: np.ndarray | torch.Tensor) -> Batch:
    """As ``pack``, of histories that may have no events."""
    items = [torch.as_tensor(each, dtype=torch.int64) for each in histories]
    edges = np.cumsum([0, *map(len, items)])
    return Batch(torch.cat(items), torch.from_numpy(edges).int(), max(map(len, items)))


def hidden_states(model: SequenceModel, *histories: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(pack(histories)).hidden
