"""AdamW over sensible parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from blossomrec.config import TrainingConfig

_UNDECAYED_MODULES = (nn.Embedding, nn.LayerNorm, nn.RMSNorm)
_UNDECAYED_NAMES = ("bias", "position", "embedding")


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases, norms, embeddings and learned positions do not."""
    decayed, undecayed = split_parameters(model)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.learning_rate, fused=fused
    )


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters with and without weight decay, each in order of definition."""
    decayed, undecayed, met = [], [], set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in met:
                continue
            met.add(id(parameter))
            plain = parameter.ndim < 2 or isinstance(module, _UNDECAYED_MODULES)
            plain = plain or any(part in name for part in _UNDECAYED_NAMES)
            (undecayed if plain else decayed).append(parameter)
    return decayed, undecayed


class LearningRate:
    """Linear warm-up to the peak, then constant or a half cosine to zero at ``total_steps``.

    ``warmup_steps`` are those asked for, but no more than a tenth of all. A pure function of the
    step, so that resuming needs no state.
    """

    def __init__(self, config: TrainingConfig, total_steps: int):
        self.config = config
        self.total_steps = total_steps
        self.warmup_steps = min(config.warmup_steps, total_steps // 10)

    def __call__(self, step: int) -> float:
        """The learning rate of update ``step``, counted from 0."""
        peak, warmup = self.config.learning_rate, self.warmup_steps
        if step < warmup:
            return peak * (step + 1) / warmup
        if self.config.schedule == "constant":
            return peak
        share = (step - warmup) / max(1, self.total_steps - warmup)
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
