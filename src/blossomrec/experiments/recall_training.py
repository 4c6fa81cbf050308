"""Training on associative recall over long histories, and what the selector finds afterwards."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blossomrec.attention import BlossomAttention
from blossomrec.config import check, option
from blossomrec.data.recall import RecallConfig, RecallTask, make_recall_task
from blossomrec.experiments.selection import planted_hits
from blossomrec.experiments.selector_profile import SelectionMeasures, measure_selection
from blossomrec.models.sequence import SequenceModel

SHORTEST = 64
# A training on short histories goes on to longer ones at this accuracy.
MASTERED = 0.92
# Weight of the newest step in the running accuracy.
_NEWEST = 0.07
# What a model is measured on, about.
_QUERIES = 512
# Tasks of evaluation begin behind all seeds of training.
_EVALUATION_SEED = 1 << 40


@dataclass(frozen=True)
class RecallTraining:
    """The task, and how a model is trained on it.

    Training begins with histories of 64 events and doubles the length, and with it the distances,
    each time the model has mastered one: attention to 64 events is dense, which is where a model
    learns to look something up at all.
    """

    length: int = option(8_192, "events of a history at the end, 64 times a power of two", low=64)
    nearest: float = option(0.35, "smallest distance over the length", low=0, high=1)
    farthest: float = option(0.7, "largest distance over the length", low=0, high=1)
    items: int = option(10_000, "catalogue", low=4)
    cue_items: int = option(1_000, "items that serve as cues", low=1)
    distractors: int = option(1, "for each cue, how often its answer is shown elsewhere", low=0)
    control: bool = option(False, "whether the answers lie among the last 16 events instead")
    tokens_per_batch: int = option(16_384, "events in a batch", low=64)
    learning_rate: float = option(2e-3, "peak learning rate of AdamW", low=0)
    warmup_steps: int = option(50, "steps over which the learning rate rises", low=1)
    first_steps: int = option(3_000, "most steps at 64 events", low=1)
    stage_steps: int = option(1_500, "most steps at each further length but the last", low=1)
    last_steps: int = option(3_000, "steps at the last length; the rate falls in the last half")
    selector_weight: float = option(1.0, "weight of the loss that teaches the selector", low=0)
    seconds: float = option(
        1e9, "most seconds; where they will not do, the rate falls in the last half of them", low=0
    )
    seed: int = option(0, "seed of everything random", low=0)

    def task(self, length: int, histories: int, seed: int) -> RecallTask:
        """Histories of a stage of the training."""
        return make_recall_task(
            RecallConfig(
                histories=histories,
                length=length,
                items=self.items,
                cue_items=self.cue_items,
                queries=max(2, length // 256),
                cues=max(4, length // 128),
                min_distance=max(2, int(length * self.nearest) // 2 * 2),
                max_distance=max(2, int(length * self.farthest) // 2 * 2),
                distractors=self.distractors,
                control=self.control,
                seed=seed,
            )
        )

    @property
    def distance(self) -> str:
        """Distances from a cue to its return at the last length, in events."""
        if self.control:
            return "1-16"
        task = self.task(self.length, 1, 0).config
        return f"{task.min_distance}-{task.max_distance}"


@dataclass(frozen=True)
class RecallMeasures:
    """What a model does on unseen histories of one length.

    Attributes:
        length: of these histories, the longest that training has come to.
        accuracy: share of the queries whose answer gets the highest score of the catalogue.
        recall_any: share of the queries whose planted block some head of some layer selects.
        recall: of each layer, share of the planted blocks that are selected, mean over heads.
        selection: of each layer, on one batch; None without a choice among blocks.
    """

    length: int
    accuracy: float
    recall_any: float | None
    recall: tuple[float, ...]
    selection: SelectionMeasures | None


@dataclass(frozen=True)
class RecallTrained:
    """What came of a training.

    Attributes:
        measures: at the longest length that was come to.
        steps: taken in all.
        finished: whether time sufficed for all steps.
        gradient_norms: by length, at the last step there, of each part of the model.
    """

    measures: RecallMeasures
    steps: int
    finished: bool
    gradient_norms: dict[int, dict[str, float]]


def train_recall(
    model: SequenceModel,
    training: RecallTraining,
    *,
    device: torch.device,
    report: Callable[[str], None] = lambda line: None,
) -> RecallTrained:
    """Train a model in place and measure it.

    Args:
        model: on ``device``, in whatever precision autocast gives there: bfloat16 on a GPU.
        report: gets a line at the end of each stage.
    """
    check(training)
    optimizer = torch.optim.AdamW(
        [each for each in model.parameters() if each.requires_grad], lr=training.learning_rate
    )
    length, step, since = SHORTEST, 0, 0
    began = stage_began = time.monotonic()
    ends = began + training.seconds
    running = torch.zeros((), device=device)
    finished, norms = False, {}
    late = training.seconds <= 0
    model.train()
    while not (finished or late):
        if length == training.length:
            passed = (time.monotonic() - stage_began) / (ends - stage_began)
            share = _last_rate(max(since / training.last_steps, passed))
        else:
            share = 1.0
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * min(share, (step + 1) / training.warmup_steps)
        seed = training.seed * 10_000_000 + step
        task = training.task(length, max(1, training.tokens_per_batch // length), seed)
        loss, right = _losses(model, task, training.selector_weight, device)
        optimizer.zero_grad()
        loss.backward()
        step, since = step + 1, since + 1
        running += _NEWEST * (right - running)
        spent = since >= _most_steps(training, length)
        finished = spent and length == training.length
        late = time.monotonic() >= ends
        # Seldom, as a GPU has to be waited for.
        mastered = since >= 60 and since % 20 == 0 and float(running) > MASTERED
        if spent or mastered or late:
            norms[length] = gradient_norms(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if length < training.length and (spent or mastered):
            report(f"{length} events: accuracy {float(running):.2f} after {step} steps")
            length, since, stage_began = 2 * length, 0, time.monotonic()
            running.zero_()
    measures = measure_recall(model, training, length, device)
    return RecallTrained(measures, step, finished, norms)


def gradient_norms(model: SequenceModel) -> dict[str, float]:
    """Norm of the gradients of each part: "attention.compress", "attention.query", "inner", ...

    The layers together; 0 for a part without gradient.
    """
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        part = re.sub(r"^layers\.\d+\.", "", name)
        part = ".".join(part.split(".")[: 2 if part.startswith("attention.") else 1])
        norm = 0.0 if parameter.grad is None else float(parameter.grad.norm())
        squares[part] = squares.get(part, 0.0) + norm**2
    return {part: math.sqrt(square) for part, square in squares.items()}


def _most_steps(training: RecallTraining, length: int) -> int:
    if length == training.length:
        return training.last_steps
    return training.first_steps if length == SHORTEST else training.stage_steps


def _last_rate(passed: float) -> float:
    """Share of the peak learning rate at the last length: falls to a tenth in the last half."""
    return min(1.0, max(0.1, 2 * (1 - passed)))


def _losses(
    model: SequenceModel, task: RecallTask, selector_weight: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """What is minimised, and the share of right answers."""
    batch = task.batch()
    targets = batch.targets[task.rows].to(device)
    batch, rows = batch.to(device), torch.from_numpy(task.rows).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        encoded = model.encode(
            batch.items,
            batch.cu_seqlens,
            batch.max_length,
            lessons=rows if selector_weight > 0 else None,
        )
    logits = encoded.hidden[rows].float() @ model.output_weight().T
    loss = nn.functional.cross_entropy(logits, targets)
    right = (logits.detach().argmax(-1) == targets).float().mean()
    if encoded.selector_loss is not None:
        loss = loss + selector_weight * encoded.selector_loss
    return loss, right


@torch.no_grad()
def measure_recall(
    model: SequenceModel, training: RecallTraining, length: int, device: torch.device
) -> RecallMeasures:
    """Accuracy and selection on some queries of histories that no training step has seen."""
    model.eval()
    histories = max(2, _QUERIES // max(2, length // 256))
    together = max(1, 2 * training.tokens_per_batch // length)
    right, hits, selection = [], [], None
    for start in range(0, histories, together):
        seed = _EVALUATION_SEED + training.seed * histories + start
        task = training.task(length, min(together, histories - start), seed)
        batch = task.batch().to(device)
        rows = torch.from_numpy(task.rows).to(device)
        planted = torch.from_numpy(task.planted_blocks(model.config.block_size)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            encoded = model.encode(
                batch.items, batch.cu_seqlens, batch.max_length, keep_layers=True
            )
            if selection is None and _can_choose(model, length):
                selection = _selection(model, batch, rows, planted)
        scores = encoded.hidden[rows].float() @ model.output_weight().T
        right.append(scores.argmax(-1).cpu() == torch.from_numpy(task.answers))
        chosen = [each.selected for each in encoded.layers if each.selected is not None]
        # An answer in the own block is seen without being selected.
        far = planted < torch.from_numpy(task.position // model.config.block_size).to(device)
        if chosen and far.any():
            hits.append(torch.stack([planted_hits(each, rows, planted)[far] for each in chosen], 1))
    found = torch.cat(hits).float() if hits else None  # [M, layers, G]
    return RecallMeasures(
        length=length,
        accuracy=torch.cat(right).float().mean().item(),
        recall_any=None if found is None else found.flatten(1).amax(1).mean().item(),
        recall=() if found is None else tuple(found.mean((0, 2)).tolist()),
        selection=selection,
    )


def _can_choose(model: SequenceModel, length: int) -> bool:
    config = model.config
    blossom = any(isinstance(each, BlossomAttention) for each in model.modules())
    return blossom and length > (config.top_n + 1) * config.block_size


def _selection(model, batch, rows, planted) -> SelectionMeasures | None:
    try:
        return measure_selection(model, batch, rows=rows, planted=planted)
    except ValueError:  # in the control form every answer may lie in the own block
        return None


def max_recall_layer(measures: RecallMeasures) -> int | None:
    """Number of the layer that finds most planted blocks, None where nothing is selected."""
    if not measures.recall:
        return None
    return measures.recall.index(max(measures.recall))


def as_numbers(measures: RecallMeasures) -> dict[str, float]:
    """Accuracy, and how the layer that finds most selects, means over its heads."""
    numbers = {"accuracy": measures.accuracy}
    layer = max_recall_layer(measures)
    if measures.recall_any is not None:
        numbers["recall_any_head"] = measures.recall_any
    if layer is not None and measures.selection is not None:
        shares = dataclasses.asdict(measures.selection.layers[layer])
        for name in ("largest_share", "entropy", "gate_balance", "mass_own"):
            numbers[name] = sum(shares[name]) / len(shares[name])
    return {name: round(value, 4) for name, value in numbers.items()}
