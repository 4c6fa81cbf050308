"""The run folder: configuration, best weights and vocabulary, everything a recommender needs.

Layout: ``config.json``, ``model.safetensors``, ``vocabulary/``, ``features/`` where the log has a
table of items, ``users/`` where the model sees one of users, ``log.jsonl``, ``metrics.json``,
``report.html``, ``checkpoints/`` and ``tracking/``; ``trained_on/``, how far histories were trained
on, and of a run that brought another one up to date ``ancestor.safetensors``. Nothing in it is
pickled.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from blossomrec.files import digest

# The files whose content makes a version; the configuration has fingerprints of all others.
VERSIONED = ("config.json", "model.safetensors")
# What a training and its evaluations leave in a run folder, besides the model.
TRAINED_ON, ANCESTOR = "trained_on", "ancestor.safetensors"
OF_TRAINING = (
    *("checkpoints", "log.jsonl", "metrics.json", "evaluations", "tracking"),
    # Written there before there were other trackers.
    "tensorboard",
    *(TRAINED_ON, ANCESTOR),
)


def run_version(run: str | Path) -> str:
    """The name of a run's content, 12 hexadecimal digits: weights, configuration and vocabulary."""
    digests = " ".join(digest(Path(run) / name) for name in VERSIONED)
    return hashlib.sha256(digests.encode()).hexdigest()[:12]
