"""Operations on histories of different lengths that lie one after another in one flat array."""

from __future__ import annotations

import numpy as np


def boundaries(lengths: np.ndarray) -> np.ndarray:
    """Where each of B pieces of ``lengths`` starts, and where the last one ends: int64 [B+1]."""
    edges = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=edges[1:])
    return edges


def positions_within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ..., length-1 for each piece in turn: int64 [sum of lengths]."""
    edges = boundaries(lengths)
    return np.arange(edges[-1], dtype=np.int64) - np.repeat(edges[:-1], lengths)


def gather_index(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Flat index of the pieces ``start .. start+length-1``, one after another: int64 [sum]."""
    edges = boundaries(lengths)
    return np.arange(edges[-1], dtype=np.int64) + np.repeat(starts - edges[:-1], lengths)


def fill(lengths: np.ndarray, budget: int) -> np.ndarray:
    """Cut pieces, kept in order, into groups of at most ``budget`` tokens.

    A piece longer than the budget is a group of its own. Returns int64 [groups+1], the number of
    the piece with which each group starts and, last, the number of pieces.
    """
    edges = boundaries(lengths)
    cuts = [0]
    while cuts[-1] < len(lengths):
        start = cuts[-1]
        stop = int(np.searchsorted(edges, edges[start] + budget, side="right")) - 1
        cuts.append(max(stop, start + 1))
    return np.asarray(cuts, dtype=np.int64)
