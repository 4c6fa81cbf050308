"""How much each event counts as a target of training."""

from __future__ import annotations

import math

import numpy as np

from blossomrec.config import TrainingConfig
from blossomrec.data.fields import listed
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, DataError, shortened


def target_importance(log: EventLog, config: TrainingConfig) -> np.ndarray | None:
    """How much each event counts as a target, float32 [E]; None where all count the same.

    It is the weight that the log has for the event, if ``config.weights`` takes it, times what
    ``config.targets`` says of its kind.

    Raises:
        ConfigError: weights are "on" and the log has none, or ``targets`` does not say what kinds
            of the log count.
        DataError: a weight is negative or not finite.
    """
    if not has_importance(log, config):
        return None
    weights = None
    if config.weights != "off" and log.weights is not None:
        weights = np.asarray(log.weights)
        wrong = ~((weights >= 0) & (weights < np.inf))
        if wrong.any():
            raise DataError(
                f"{log.folder} has the weight {weights[np.argmax(wrong)]}: weights must be finite "
                "and at least 0; prepare it again, or choose training.weights off"
            )
    if not config.targets:
        return weights
    found = kind_importance(config.targets, log)[log.kinds]
    if weights is not None:
        with np.errstate(over="ignore"):
            found *= weights
        if not np.isfinite(found).all():
            raise ConfigError(
                f"training.targets is {shortened(config.targets)}: by the weights of {log.folder} "
                "it is not finite in 32 bits"
            )
    return found


def has_importance(log: EventLog, config: TrainingConfig) -> bool:
    """Whether :func:`target_importance` is not None.

    Raises:
        ConfigError: weights are "on" and the log has none.
    """
    if config.weights == "on" and log.weights is None:
        raise ConfigError(
            f"training.weights is 'on', but the events of {log.folder} have no weights: prepare it "
            "with the column of weights, --weight, or choose auto"
        )
    return bool(config.targets) or (config.weights != "off" and log.weights is not None)


def kind_importance(targets: str, log: EventLog) -> np.ndarray:
    """How much each kind of a log counts by ``training.targets``, float32 [K+1].

    Raises:
        ConfigError: an entry is not of the form ``kind=weight``, its kind is not known or named
            before, its weight is negative or not finite, none is over 0, or the log has no kinds.
    """
    start, kinds = f"training.targets is {shortened(targets)}", log.fields.kinds
    if log.kinds is None:
        raise ConfigError(
            f"{start}: the events of {log.folder} have no kinds; prepare it with the column of "
            "kinds, --kind"
        )
    known = f"the events of {log.folder} have the kinds {', '.join(map(repr, kinds))}"
    found: dict[str, float] = {}
    for entry in listed(targets):
        kind, equals, number = (part.strip() for part in entry.rpartition("="))
        if not equals:
            raise ConfigError(
                f"{start}: {shortened(entry.strip())} is not of the form kind=weight; {known}"
            )
        if kind not in kinds:
            raise ConfigError(f"{start}: there is no kind {shortened(kind)}; {known}")
        if kind in found:
            raise ConfigError(f"{start}: kind {shortened(kind)} is there twice")
        found[kind] = _number(number)
        if not 0 <= found[kind] < np.inf:
            raise ConfigError(
                f"{start}: the weight of {shortened(kind)} is {shortened(number)}, a finite number "
                "of at least 0 is needed"
            )
    if not any(found.values()):
        raise ConfigError(f"{start}: the weight of one kind must be over 0")
    return np.array([0.0, *(found.get(kind, 0.0) for kind in kinds)], np.float32)


def _number(text: str) -> float:
    """The number in a text as it is in 32 bits, NaN where there is none."""
    try:
        with np.errstate(over="ignore"):
            return float(np.float32(text))
    except ValueError:
        return math.nan
