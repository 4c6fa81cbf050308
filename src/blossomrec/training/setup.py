"""From a configuration to what the loop turns: Fabric, batches, loss, optimizer, learning rate.

:func:`describe` tells people what is about to be done.
"""

from __future__ import annotations

import logging
import math
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from blossomrec.attention.api import resolve
from blossomrec.attention.spec import Heads
from blossomrec.config import RunConfig, TrainingConfig
from blossomrec.data.batches import TrainingBatches
from blossomrec.data.batching.importance import has_importance
from blossomrec.data.log import EventLog
from blossomrec.data.split import make_split
from blossomrec.device import resolve_device
from blossomrec.errors import ConfigError
from blossomrec.losses import LOSSES, TrainingLoss, build_loss
from blossomrec.models.inputs import check_repeats, repeated_share
from blossomrec.models.sequence import SequenceModel
from blossomrec.models.transformer import TransformerModel, blossom_spec
from blossomrec.ranks import ALONE, Ranks
from blossomrec.training.counts import training_counts
from blossomrec.training.objective import Objective
from blossomrec.training.shape import Shape, graph_shape
from blossomrec.training.sparse import RowTable, build_table
from blossomrec.training.warm_start.batches import NewEventBatches

if TYPE_CHECKING:
    from blossomrec.training.sharded.division import Division

_UNDECAYED_MODULES = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
_UNDECAYED_NAMES = ("bias", "position", "embedding", "rates")


def build_optimizer(
    model: nn.Module, config: TrainingConfig, table: RowTable | None = None
) -> torch.optim.AdamW:
    """AdamW; matrices decay, biases, norms, embeddings, positions and rates of decay do not.

    What ``table`` updates is left out.
    """
    decayed, undecayed = split_parameters(model)
    if table is not None:
        undecayed = [each for each in undecayed if each is not table.weight]
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


try:
    from lightning_fabric import Fabric
except ImportError:
    # The package `lightning` brings the same Fabric under its own name.
    from lightning.fabric import Fabric  # pyright: ignore[reportMissingImports]


def open_fabric(config: TrainingConfig, ranks: Ranks | None = None) -> Fabric:
    """Fabric on one device, in the precision asked for; that of this rank where there are several.

    Raises:
        ConfigError: ``device`` is cuda and there is none.
    """
    device = resolve_device(config.device, "training.device")
    for name in ("lightning_fabric", "lightning.fabric"):
        # It would announce its precision, and tips, where silence was asked for.
        logging.getLogger(name).setLevel(logging.WARNING)
    precision = resolve_precision(config, device)
    # Fabric is told of one process: what ranks do together is not its own.
    devices = [ranks.local] if ranks is not None and device == "cuda" else 1
    return Fabric(accelerator=device, devices=devices, precision=precision)


def resolve_precision(config: TrainingConfig, device: str) -> Literal["32-true", "bf16-mixed"]:
    """The precision that ``config`` stands for on a device, "cpu" or "cuda"."""
    if config.precision == "auto":
        return "bf16-mixed" if device == "cuda" else "32-true"
    return config.precision


def peak_mib(device: torch.device) -> float:
    """Most memory held so far in MiB: of torch on the GPU, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@dataclass(frozen=True)
class Parts:
    """What takes part in a training step.

    ``objective`` and ``stepper`` are the model with its loss and the optimizer as Fabric wraps
    them, ``model`` and ``optimizer`` the bare ones, which are stored. ``shape`` is that of all
    batches, or of this rank's parts, where a step is one CUDA graph, None elsewhere. ``table`` are
    the item embeddings where a step updates some rows of them, None where the optimizer has them.
    ``ranks`` train together, and ``division`` gives this one its part of each batch; None alone.
    """

    fabric: Fabric
    model: SequenceModel
    optimizer: torch.optim.Optimizer
    loss: TrainingLoss
    objective: Any
    stepper: Any
    batches: TrainingBatches
    learning_rate: LearningRate
    shape: Shape | None
    table: RowTable | None = None
    ranks: Ranks = ALONE
    division: Division | None = None


def build_parts(
    model: SequenceModel,
    log: EventLog,
    train_end: np.ndarray,
    config: RunConfig,
    fabric: Fabric,
    seen: np.ndarray | None = None,
    ranks: Ranks | None = None,
) -> Parts:
    """Everything for training ``model``, which is moved to the device of ``fabric``.

    Args:
        seen: how many of each user's first events the run has been trained on that the model
            begins as, int64 [U]; None where it begins by itself.
        ranks: who train together, of which this one has built the model; None for one alone.

    Raises:
        ConfigError: the model was built for another catalogue, ``training.graph`` is on where
            there can be none, ``training.table_optimizer`` wants rows where all are needed, targets
            do not count alike and loss or backbone cannot have it, or several ranks cannot train
            it.
        DataError: there is nothing to train on.
    """
    if model.num_items != log.num_items:
        raise ConfigError(
            f"the model has {model.num_items} items, {log.folder} has {log.num_items}"
        )
    batches = model.training_batches(log, train_end, config)
    if seen is not None and config.training.events == "new":
        replay = config.training.replay
        batches = NewEventBatches(batches, log, seen, train_end, replay=replay)
    if has_importance(log, config.training):
        _check_weighted(batches, config)
    if model.own_history is not None:
        check_repeats(config)
    ranks, division = ranks or ALONE, None
    counts = training_counts(log, train_end, ranks)
    model.mark_trained(counts > 0)
    loss = build_loss(config.training, counts, log.num_items, may_fuse=model.may_fuse)
    # Before the optimizer is built, whose fused form wants the parameters where they will stay.
    model.to(fabric.device)
    table = build_table(model, loss, config.training)
    optimizer = build_optimizer(model, config.training, table)
    options = {"selector_weight": config.model.selector_weight, "table": table}
    shape = graph_shape(config, batches, fabric.device, ranks)
    if ranks.alone:
        objective = Objective(model, loss, **options)
    else:
        from blossomrec.training.sharded import build

        build.check_shared(config, loss)
        objective = build.ShardedObjective(model, loss, ranks=ranks, **options)
        division = build.divide(model, loss, config, ranks, shape, batches)
    wrapped, stepper = fabric.setup(objective, optimizer)
    rate = LearningRate(config.training, config.training.epochs * batches.steps(0))
    return Parts(
        *(fabric, model, optimizer, loss, wrapped, stepper, batches, rate, shape, table),
        ranks=ranks,
        division=division,
    )


def _check_weighted(batches: TrainingBatches, config: RunConfig) -> None:
    """Raise ConfigError where the backbone's batches or the loss take no weights of targets."""
    training, refusal = config.training, ""
    if batches.importance is None:
        refusal = f"the batches of model.backbone {config.model.backbone!r} have"
    elif not LOSSES.get(training.loss).weighted:
        refusal = f"training.loss {training.loss!r} takes"
    if refusal:
        reason = f"training.targets is {training.targets!r}"
        if not training.targets:
            reason = f"training.weights is {training.weights!r} and the log has weights"
        raise ConfigError(
            f"{reason}, but {refusal} no weights: choose another, or leave targets empty and "
            "weights off"
        )


# A log is small for its options where an epoch has fewer steps, validation fewer cases, or the
# model sees so many times more events than the longest history has.
FEW_STEPS, FEW_CASES, FAR_LONGER = 10, 30, 4
# An epoch of as many steps is suggested, in batches of no fewer events.
GOOD_STEPS, SMALLEST_BATCH = 20, 64


def describe(
    parts: Parts, validation_cases: int, log: EventLog, config: RunConfig, run: Path
) -> list[str]:
    """Five lines: data, model, device, steps, place; how many events are new where a run is brought
    up to date; what targets count, unless they all count the same; whether own items are mixed in;
    and a warning where the log is small."""
    steps, training = parts.batches.steps(0), config.training
    parameters = parts.model.num_parameters
    cases = f"{validation_cases:,} validation cases" if validation_cases else "no validation"
    minutes = f" or {training.minutes:g} minutes" if training.minutes else ""
    lines = [
        f"log: {log.num_users:,} users, {log.num_events:,} events, {log.num_items:,} items",
        f"model: {config.model.backbone}, {parameters:,} parameters",
        f"device: {_device(training, parts)}, {_attention(config, parts)}",
        f"training: {steps:,} steps an epoch, at most {training.epochs:,} epochs{minutes}, {cases}",
        f"run: {run}",
    ]
    if parts.batches.importance is not None:
        lines.insert(4, f"targets: {_counted(log, training)}")
    if isinstance(parts.batches, NewEventBatches):
        lines.insert(4, f"events: {parts.batches.num_new:,} new, {training.replay:.0%} replay")
    if parts.model.own_history is not None:
        train_end = make_split(log, config.evaluation).train_end
        share = repeated_share(log, train_end, parts.ranks)
        lines.insert(2, f"repeats: own items mixed in, {share:.0%} of the training events are some")
    small = _too_large(parts, validation_cases, log, config)
    if small:
        lines.append(f"warning: the log is small for these options: {'; '.join(small)}")
    return lines


def _counted(log: EventLog, training: TrainingConfig) -> str:
    """By what targets count."""
    weighted = log.weights is not None and training.weights != "off"
    told = [training.targets] * bool(training.targets) + ["weights of the log"] * weighted
    return " times the ".join(told)


def _device(training: TrainingConfig, parts: Parts) -> str:
    device = parts.fabric.device
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    graph = ", steps as a CUDA graph" if parts.shape and device.type == "cuda" else ""
    ranks = "" if parts.ranks.alone else f"{parts.ranks.size} ranks, "
    return f"{ranks}{device.type}{name}, {resolve_precision(training, device.type)}{graph}"


def _attention(config: RunConfig, parts: Parts) -> str:
    """Which attention, and whose implementation, is trained."""
    if not isinstance(parts.model, TransformerModel):
        return "no attention"
    model = parts.model.config
    if model.attention == "full":
        return "full attention of PyTorch"
    if model.attention != "blossom":
        return f"{model.attention} attention"
    kind = parts.fabric.device.type
    exact = resolve_precision(config.training, kind) == "32-true"
    dtype = torch.float32 if exact else torch.bfloat16
    spec = blossom_spec(model, causal=parts.model.causal)
    heads = Heads(model.heads, model.num_kv_heads, model.hidden_size // model.heads)
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
