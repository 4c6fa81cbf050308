"""Finds out whether the host would wait for a GPU, on a machine without one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from blossomrec.attention import selector
from blossomrec.models import fused


class Waits(TorchDispatchMode):
    """Operators by which the host would wait for a GPU."""

    NAMES = (
        "_local_scalar_dense",
        "is_nonzero",
        "item",
        "nonzero",
        "masked_select",
        "unique",
        "equal",
    )

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        masks = name.startswith(("index", "_index")) and any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool
            for each in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if masks or name in self.NAMES or name.startswith("unique"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def take_the_way_of_a_gpu(monkeypatch):
    """Let a training take the kernels of a GPU, interpreted: options of a model that they take."""
    pytest.importorskip("triton")
    monkeypatch.setattr(fused, "usable", lambda x: True)
    monkeypatch.setattr(selector, "SAMPLES", 16)
    return {
        "attention_impl": "triton",
        "block_size": 16,
        "compress_window": 16,
        "max_len": 34,
        "hidden_size": 32,
    }
