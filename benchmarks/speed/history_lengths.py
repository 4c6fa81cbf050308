"""Lengths of the histories of a batch: all alike, or as a real log has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from blossomrec.data.log import EventLog
from blossomrec.data.windows import boundaries


def equal_lengths(length: int, tokens: int) -> tuple[int, ...]:
    """As many histories of ``length`` events as ``tokens`` allow, one at least."""
    return (length,) * max(1, tokens // length)


def real_lengths(folder: Path, tokens: int) -> tuple[int, ...]:
    """Lengths of random users' histories, ``tokens`` events in all; the last one may be cut.

    The same for the same log and number. A log with fewer events gives all that it has.
    """
    lengths = np.diff(np.asarray(EventLog.open(folder).offsets))
    drawn = np.random.default_rng(0).permutation(lengths)
    ends = np.minimum(boundaries(drawn), tokens)
    return tuple(length for length in np.diff(ends).tolist() if length)


def packed(lengths: tuple[int, ...], device: str) -> Tensor:
    """Where each history starts and the last one ends, int32 [B+1]."""
    return torch.from_numpy(boundaries(np.array(lengths)).astype(np.int32)).to(device)
