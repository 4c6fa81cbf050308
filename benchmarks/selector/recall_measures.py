"""What a model does on associative recall: accuracy, and what its selector finds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from benchmarks.selector.measured_selection import (
    SelectionMeasures,
    measure_selection,
    planted_hits,
)
from benchmarks.selector.recall_options import RecallTraining
from blossomrec.attention import BlossomAttention
from blossomrec.models.sequence import SequenceModel

# What a model is measured on, about.
QUERIES = 512
# Tasks of evaluation begin behind all seeds of training, and those by which a training is watched
# and options are chosen behind them.
EVALUATION_SEED, VALIDATION_SEED = 1 << 40, 1 << 41


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


@torch.no_grad()
def measure_recall(
    model: SequenceModel,
    training: RecallTraining,
    length: int,
    device: torch.device,
    *,
    queries: int | None = None,
    first_seed: int = EVALUATION_SEED,
    profile: bool = True,
) -> RecallMeasures:
    """Accuracy and selection on some queries of histories that no training step has seen.

    Args:
        model: is left in evaluation mode.
        training: the task.
        length: of the histories, in events.
        device: of the model.
        queries: about how many, QUERIES where not given.
        first_seed: from which on the histories are drawn.
        profile: whether the selection is measured as well.
    """
    model.eval()
    histories = max(2, (queries or QUERIES) // training.queries(length))
    together = max(1, 2 * training.tokens_per_batch // length)
    right, hits, selection = [], [], None
    for start in range(0, histories, together):
        seed = first_seed + training.seed * histories + start
        task = training.task(length, min(together, histories - start), seed)
        batch = task.batch().to(device)
        rows = torch.from_numpy(task.rows).to(device)
        planted = torch.from_numpy(task.planted_blocks(model.config.block_size)).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            encoded = model.encode(batch, keep_layers=True)
            if profile and selection is None and _can_choose(model, length):
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
