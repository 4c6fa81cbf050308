"""Experiment trackers, which are told of a training: TensorBoard, MLflow, Weights & Biases.

A tracker of one's own is a :class:`Tracker` that is registered in ``TRACKERS`` or an entry point of
the group ``blossomrec.trackers``.
"""

from blossomrec.registry import TRACKERS
from blossomrec.tracking.tracker import Place, Status, Tracker

__all__ = ["TRACKERS", "Place", "Status", "Tracker"]
