"""In every configuration that is shipped, each parameter receives gradient."""

import dataclasses

import pytest
import torch

from benchmarks.accuracy.accuracy_study import DATASETS, MODELS, Case
from blossomrec import demo
from blossomrec.config import ModelConfig, RunConfig
from blossomrec.data.batch import Batch
from blossomrec.losses import cross_entropy
from blossomrec.models import build_model

SHIPPED = {
    "default": ModelConfig(),
    "default, full": ModelConfig(attention="full"),
    "default, mean": ModelConfig(compress="mean"),
    "demo": demo.MODEL,
    "bert4rec": ModelConfig(backbone="bert4rec"),
    "gru4rec": ModelConfig(backbone="gru4rec"),
    "mamba4rec": ModelConfig(backbone="mamba4rec"),
    "hstu": ModelConfig(backbone="hstu"),
    "linrec": ModelConfig(attention="linrec"),
    "window": ModelConfig(attention="window"),
    "esasrec": ModelConfig(norm="pre", residual="gated", feed_forward="swiglu"),
    **{
        f"{name}, {dataset}": Case(dataset, name).configure().model
        for dataset in DATASETS
        for name in MODELS
    },
}


@pytest.mark.parametrize("name", SHIPPED)
def test_no_parameter_is_dead(name):
    config = dataclasses.replace(SHIPPED[name], dropout=0.0)
    torch.manual_seed(0)
    model = build_model(config, 40)
    cu_seqlens = torch.tensor([0, config.max_len, config.max_len + 20], dtype=torch.int32)
    total = int(cu_seqlens[-1])
    items = torch.randint(0, 40, (total,))
    items[3] = getattr(model, "mask_item", 0)
    encoded = model.encode(
        Batch(items, cu_seqlens, config.max_len), distil_rows=torch.arange(total)
    )
    loss = cross_entropy(encoded.hidden, model.output_weight(), torch.randint(0, 40, (total,)))
    if encoded.selector_loss is not None:
        loss = loss + RunConfig().model.selector_weight * encoded.selector_loss
    loss.backward()
    # Where no history has more blocks than are selected, nobody asks for the keys of blocks.
    unasked = config.attention == "blossom" and config.max_len // config.block_size <= config.top_n
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert (parameter.grad.norm() > 0) == (not unasked or ".compress." not in key), key
