"""What a trained model's Blossom attention does: what its paths count, which blocks it selects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blossomrec.attention import AttentionOutput, BlossomAttention
from blossomrec.attention.path_shares import path_shares
from blossomrec.data.batches import HistoryBatches
from blossomrec.data.log import EventLog
from blossomrec.data.split import Cases
from blossomrec.models.sequence import SequenceModel


@dataclass(frozen=True)
class Attended:
    """A layer's rotated queries [T, H, d] and keys [T, G, d], and what its attention gave."""

    layer: BlossomAttention
    q: Tensor
    k: Tensor
    output: AttentionOutput

    def shares(self, cu_seqlens: Tensor) -> Tensor:
        """What the long-term and the short-term path count for each event and head, [T, H, 2]."""
        return path_shares(self.q, self.k, cu_seqlens, self.output, self.layer.spec)


@contextlib.contextmanager
def recorded(model: SequenceModel) -> Iterator[list[Attended]]:
    """The model in evaluation mode; what goes through each of its Blossom attentions, in order."""
    training = model.training
    found: list[Attended] = []

    def keep(
        layer: nn.Module,
        args: tuple[Tensor, ...],
        options: dict[str, Any],
        output: AttentionOutput,
    ) -> None:
        assert isinstance(layer, BlossomAttention)
        q, k, *_ = layer.project(*args, rotary=options.get("rotary"))
        found.append(Attended(layer, q, k, output))

    layers = [each for each in model.modules() if isinstance(each, BlossomAttention)]
    handles = [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers]
    model.eval()
    try:
        yield found
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class AttentionProfile:
    """Attention of a model on a few histories.

    Attributes:
        gates: float64 [layers, H, 2], mean weight of the long-term and the short-term path; of a
            union the mean share of the attention on the keys of either.
        selected: for each history, int32 [layers, L, G, n] block numbers, -1 for none.
        users: int64, the user row of each of those histories.
        ends: int64, position in the user's history after its last event.
    """

    gates: np.ndarray
    selected: list[np.ndarray]
    users: np.ndarray
    ends: np.ndarray

    def times(self, log: EventLog, number: int) -> np.ndarray | None:
        """Seconds since 1970 of the events of a history, int64 [L]; None where not known."""
        times, end = log.history(int(self.users[number])).times, int(self.ends[number])
        return None if times is None else times[end - self.selected[number].shape[1] : end]


def attention_profile(
    model: SequenceModel, log: EventLog, cases: Cases, *, histories: int = 3
) -> AttentionProfile | None:
    """Gates and selected blocks of a model in evaluation mode, for the longest of the histories.

    Returns None for a model without Blossom attention.
    """
    cases = cases.last_of_each_user()
    longest = np.argsort(-cases.history_end, kind="stable")[:histories]
    batches = HistoryBatches(
        log,
        cases.users[longest],
        cases.history_end[longest],
        max_len=model.max_len,
        tokens_per_batch=max(model.max_len * histories, 1),
        inputs=model.inputs,
    )
    device = model.item_embeddings.weight.device
    gates, selected = [], []
    with torch.no_grad():
        for _, batch in batches:
            batch = batch.to(device)
            with recorded(model) as layers:
                model.encode(batch)
            if not layers:
                return None
            weights = [each.shares(batch.cu_seqlens) for each in layers]
            gates.append(torch.stack(weights).float().cpu())
            blocks = [each.output.selected for each in layers if each.output.selected is not None]
            lengths = batch.cu_seqlens.diff().tolist()
            selected += torch.stack(blocks).cpu().split(lengths, dim=1)
    return AttentionProfile(
        torch.cat(gates, dim=1).double().mean(1).numpy(),
        [one.numpy() for one in selected],
        cases.users[longest],
        cases.history_end[longest],
    )


def attended_share(
    selected: np.ndarray, block_size: int, *, columns: int = 96, rows: int = 64
) -> tuple[np.ndarray, int, int]:
    """How much each part of a history was attended to from each place in it.

    Args:
        selected: selected block numbers, [L, n] or [L, G, n]; -1 for none.
        block_size: events in a block.
        columns, rows: largest size of the result; longer histories are averaged.

    Returns:
        float64 [rows, columns]: the share of the choices made at the queries of a column that fell
        on the blocks of a row, 0 where none was made; blocks in a row; queries in a column.
    """
    choices = selected.reshape(len(selected), -1)
    blocks = -(-len(selected) // block_size)
    tall, wide = -(-blocks // rows), -(-len(selected) // columns)
    query, slot = np.nonzero(choices >= 0)
    row, column = choices[query, slot] // tall, query // wide
    shape = (-(-blocks // tall), -(-len(selected) // wide))
    counts = np.bincount(row * shape[1] + column, minlength=shape[0] * shape[1]).reshape(shape)
    return counts / np.maximum(1, counts.sum(0)), tall, wide


def distance_shares(
    selections: Sequence[np.ndarray], block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distribution of the distance of selected blocks from the event's own block, in blocks.

    Only events with more eligible blocks than can be selected count: elsewhere nothing is chosen.

    Args:
        selections: for each history, selected block numbers [L, n] or [L, G, n]; -1 for none.
        block_size: events in a block.

    Returns:
        Shares float64 [largest distance + 1] of what was selected, and of a uniform choice among
        the eligible blocks of the same events.
    """
    largest = max((-(-len(selected) // block_size) for selected in selections), default=1)
    chosen, chance = np.zeros(largest), np.zeros(largest)
    for selected in selections:
        length, slots = len(selected), selected.shape[-1]
        own = np.arange(length) // block_size
        choices = selected.reshape(length, -1)
        # Blocks after an event are eligible only in the bidirectional form.
        causal = bool((choices <= own[:, None]).all())
        complete = length // block_size
        eligible = own if causal else complete - (own < complete)
        choices = np.where(eligible[:, None] > slots, choices, -1)
        query, slot = np.nonzero(choices >= 0)
        distance = np.abs(own[query] - choices[query, slot])
        chosen += np.bincount(distance, minlength=largest)
        for block, times in enumerate(np.bincount(own[query], minlength=largest)):
            blocks = np.arange(block if causal else complete)
            possible = np.abs(blocks[blocks != block] - block)
            chance += times * np.bincount(possible, minlength=largest) / max(1, len(possible))
    return chosen / max(1, chosen.sum()), chance / max(1, chance.sum())
