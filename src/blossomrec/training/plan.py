"""What a training is about to do, in a few lines for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from blossomrec.attention.api import resolve
from blossomrec.attention.spec import Heads
from blossomrec.config import RunConfig, TrainingConfig
from blossomrec.data.log import EventLog
from blossomrec.models.transformer import TransformerModel, blossom_spec
from blossomrec.training.setup import Parts, resolve_precision

# A log is small for its options where an epoch has fewer steps, validation fewer cases, or the
# model sees so many times more events than the longest history has.
FEW_STEPS, FEW_CASES, FAR_LONGER = 10, 30, 4
# An epoch of as many steps is suggested, in batches of no fewer events.
GOOD_STEPS, SMALLEST_BATCH = 20, 64


def describe(
    parts: Parts, validation_cases: int, log: EventLog, config: RunConfig, run: Path
) -> list[str]:
    """Five lines: data, model, device, steps, place; and a warning where the log is small."""
    steps, training = parts.batches.steps(0), config.training
    parameters = sum(one.numel() for one in parts.model.parameters())
    cases = f"{validation_cases:,} validation cases" if validation_cases else "no validation"
    lines = [
        f"log: {log.num_users:,} users, {log.num_events:,} events, {log.num_items:,} items",
        f"model: {config.model.backbone}, {parameters:,} parameters",
        f"device: {_device(training, parts)}, {_attention(config, parts)}",
        f"training: {steps:,} steps an epoch, at most {training.epochs:,} epochs, {cases}",
        f"run: {run}",
    ]
    small = _too_large(parts, validation_cases, log, config)
    if small:
        lines.append(f"warning: the log is small for these options: {'; '.join(small)}")
    return lines


def _device(training: TrainingConfig, parts: Parts) -> str:
    device = parts.fabric.device
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    graph = ", steps as a CUDA graph" if parts.shape and device.type == "cuda" else ""
    return f"{device.type}{name}, {resolve_precision(training, device.type)}{graph}"


def _attention(config: RunConfig, parts: Parts) -> str:
    """Which attention, and whose implementation, is trained."""
    model = config.model
    if not isinstance(parts.model, TransformerModel):
        return "no attention"
    if model.attention == "full":
        return "full attention of PyTorch"
    kind = parts.fabric.device.type
    exact = resolve_precision(config.training, kind) == "32-true"
    dtype = torch.float32 if exact else torch.bfloat16
    spec = blossom_spec(model, causal=parts.model.causal)
    heads = Heads(model.heads, model.kv_heads, model.hidden_size // model.heads)
    return f"blossom attention by {resolve(spec, heads, dtype, kind, model.attention_impl).name}"


def _too_large(parts: Parts, validation_cases: int, log: EventLog, config: RunConfig) -> list[str]:
    """The options that ask for more than the log has, each with what that means."""
    training, batches, found = config.training, parts.batches, []
    steps, longest = batches.steps(0), int(np.diff(np.asarray(log.offsets)).max())
    if steps < FEW_STEPS and training.tokens_per_batch >= 2 * SMALLEST_BATCH:
        better = max(SMALLEST_BATCH, _power_of_two(batches.num_events // GOOD_STEPS))
        found.append(
            f"training.tokens_per_batch {training.tokens_per_batch} "
            f"({steps} steps an epoch; {better} would give more)"
        )
    warmup = parts.learning_rate.warmup_steps
    if warmup < training.warmup_steps:
        found.append(
            f"training.warmup_steps {training.warmup_steps} ({warmup} are taken, a tenth of all)"
        )
    if config.model.max_len > FAR_LONGER * longest:
        found.append(
            f"model.max_len {config.model.max_len} (the longest history has {longest} events)"
        )
    if 0 < validation_cases < FEW_CASES:
        found.append(
            f"training.patience {training.patience} "
            f"({validation_cases} validation cases leave to chance which epoch is best)"
        )
    return found


def _power_of_two(number: int) -> int:
    """The largest up to ``number``, at least 1."""
    return 1 << max(1, number).bit_length() - 1
