"""Each model learns what follows what, and holds no more than it says."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from blossomrec.data.batch import pack
from blossomrec.errors import ConfigError
from largest_output import LargestOutput
from small_models import NUM_ITEMS, random_histories, small_model

MODELS = {
    "window": {"attention": "window"},
    "linrec": {"attention": "linrec"},
    "linrec in bert4rec": {"attention": "linrec", "backbone": "bert4rec"},
    "mamba4rec": {"backbone": "mamba4rec"},
    "mamba4rec, one layer": {"backbone": "mamba4rec", "layers": 1},
    "hstu": {"backbone": "hstu"},
    "esasrec": {"residual": "gated", "feed_forward": "swiglu", "norm": "pre"},
}


@pytest.mark.parametrize("name", MODELS)
def test_steps_of_training_make_the_loss_fall(name):
    model = small_model(**MODELS[name]).train()
    walks = [(np.arange(20) * 3 + start) % NUM_ITEMS for start in range(0, 50, 5)]
    batch = pack(walks)
    targets = (batch.items + 3) % NUM_ITEMS
    optimizer, losses = torch.optim.AdamW(model.parameters(), 5e-3), []
    for _ in range(40):
        loss = F.cross_entropy(model.encode(batch).hidden @ model.output_weight().T, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("name", ["window", "linrec", "linrec in bert4rec", "mamba4rec"])
def test_memory_is_linear_in_a_history(name):
    model, largest = small_model(**MODELS[name]), []
    for count in (1_024, 4_096):
        with LargestOutput() as found:
            model.encode(pack(random_histories(count))).hidden.sum().backward()
        largest.append(found.elements)
    assert largest[1] <= 4.5 * largest[0]


def test_a_state_space_model_sees_one_direction():
    with pytest.raises(ConfigError, match="'mamba', which sees what came before: bert4rec"):
        small_model(backbone="bert4rec", attention="mamba")
