"""Where a selector has a choice, and what a uniform choice would do there: from lengths alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from blossomrec.report.inspect.selection_measures import evenness

# Blocks of a history that are told apart by how often they are selected.
RANKS = 20


@dataclass(frozen=True)
class SelectionForm:
    """The options of an attention that decide which blocks may be selected."""

    block_size: int
    top_n: int
    causal: bool


def first_choosing(lengths: np.ndarray, form: SelectionForm) -> np.ndarray:
    """Position of each history's first event with more than ``top_n`` eligible blocks, int64 [B].

    All later events have a choice as well; it is the length of the history where no event has.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if form.causal:
        return np.minimum((form.top_n + 1) * form.block_size, lengths)
    complete = lengths // form.block_size
    # Events behind the last complete block have one block more to choose from than the others.
    return np.select(
        [complete > form.top_n + 1, complete == form.top_n + 1],
        [np.zeros_like(lengths), complete * form.block_size],
        lengths,
    )


def sample_choosing(
    lengths: np.ndarray, form: SelectionForm, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most ``size`` of all events with a choice, each as likely as every other.

    Returns:
        Numbers of their histories, rising, and their positions there, int64 [size].
    """
    first = first_choosing(lengths, form)
    edges = np.concatenate([[0], np.cumsum(lengths - first)])
    size = min(size, int(edges[-1]))
    drawn = np.random.default_rng(seed).choice(edges[-1], size, replace=False, shuffle=False)
    drawn.sort()
    history = np.searchsorted(edges, drawn, side="right") - 1
    return history, first[history] + drawn - edges[history]


@dataclass(frozen=True, eq=False)
class UniformChoice:
    """What is expected where ``top_n`` of the eligible blocks are drawn, all alike.

    Attributes:
        distances: share of each distance between selected and own block, in blocks, float64.
        hub_shares: share of a history's choosing events that select its most often selected
            block, the next one, and so on; mean over choosing events, float64 [RANKS].
        entropy: as of :class:`blossomrec.report.inspect.selection_measures.Hubness`, of the
            expected choices, mean over choosing events.
    """

    distances: np.ndarray
    hub_shares: np.ndarray
    entropy: float


def uniform_choice(lengths: np.ndarray, form: SelectionForm) -> UniformChoice:
    """Expectation over histories of ``lengths``, at least one of which has a choice."""
    lengths, times = np.unique(lengths, return_counts=True)
    first = first_choosing(lengths, form)
    distances = np.zeros(-(-int(lengths[-1]) // form.block_size))
    hub_shares, entropy = np.zeros(RANKS), 0.0
    for length, start, weight in zip(lengths, first, times * (lengths - first), strict=True):
        if not weight:
            continue
        own, expected = _expected_choices(int(length), int(start), form)
        away = np.abs(own[:, None] - np.arange(expected.shape[1]))
        histories = weight / (length - start)
        distances += histories * np.bincount(away.ravel(), expected.ravel(), len(distances))
        counts = expected.sum(0)
        hub_shares += histories * ranked(counts)
        entropy += weight * evenness(torch.from_numpy(counts)).item()
    events = float((times * (lengths - first)).sum())
    return UniformChoice(distances / distances.sum(), hub_shares / events, entropy / events)


def ranked(counts: np.ndarray) -> np.ndarray:
    """The ``RANKS`` largest of the last dimension, falling, filled up with zeros."""
    largest = -np.sort(-counts, axis=-1)[..., :RANKS]
    missing = [(0, 0)] * (counts.ndim - 1) + [(0, RANKS - largest.shape[-1])]
    return np.pad(largest, missing)


def _expected_choices(
    length: int, start: int, form: SelectionForm
) -> tuple[np.ndarray, np.ndarray]:
    """Own blocks [W] of a history's choosing events, and how many of the events of each would
    select each complete block, float64 [W, blocks]."""
    own, events = np.unique(np.arange(start, length) // form.block_size, return_counts=True)
    block = np.arange(length // form.block_size)
    eligible = block < own[:, None] if form.causal else block != own[:, None]
    chance = form.top_n / eligible.sum(1)
    return own, eligible * (events * chance)[:, None]
