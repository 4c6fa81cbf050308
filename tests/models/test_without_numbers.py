"""A model without numbers has the shapes of one with them, and no compiler is imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from blossomrec.config import ModelConfig
from blossomrec.models import build_model
from blossomrec.models.shard import without_numbers
from blossomrec.registry import BACKBONES

OWN = tuple(BACKBONES)
# Others begin with numbers that are computed, too, and not drawn alone.
DRAWN = tuple(name for name in OWN if name != "mamba4rec")


def shapes(backbone: str) -> dict[str, torch.Size]:
    model = build_model(ModelConfig(backbone=backbone, hidden_size=32, max_len=20), 50)
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize("backbone", OWN)
def test_it_has_the_shapes_of_a_model_with_numbers(backbone):
    before = torch.get_rng_state()
    with without_numbers():
        model = build_model(ModelConfig(backbone=backbone, hidden_size=32, max_len=20), 50)
    assert all(value.is_meta for value in model.parameters())
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: value.shape for name, value in model.state_dict().items()} == shapes(backbone)


def test_no_compiler_is_imported_for_it():
    code = (
        "import sys\n"
        "from blossomrec.config import ModelConfig\n"
        "from blossomrec.models import build_model\n"
        "from blossomrec.models.shard import without_numbers\n"
        f"for backbone in {DRAWN}:\n"
        "    with without_numbers():\n"
        "        build_model(ModelConfig(backbone=backbone, hidden_size=32, max_len=20), 50)\n"
        "    print(backbone, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"{backbone} False" for backbone in DRAWN], done.stderr
