"""The run that another one begins as: found, checked against it, and remembered for resumption."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from blossomrec.config import RunConfig
from blossomrec.data.fields import EventFields
from blossomrec.data.log import EventLog
from blossomrec.errors import RunError
from blossomrec.files import digest
from blossomrec.ranks import ALONE, Ranks
from blossomrec.run import ANCESTOR
from blossomrec.run.description import read_run_config
from blossomrec.run.tables import open_vocabulary
from blossomrec.run.weights import read_weights, write_weights
from blossomrec.training.checkpoint import Checkpoints
from blossomrec.training.state import load_optimizer_state
from blossomrec.training.warm_start.seen import seen_events
from blossomrec.training.warm_start.weights import check_architecture, take_over

if TYPE_CHECKING:
    from blossomrec.training.setup import Parts

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Ancestor:
    """The run that a training begins as.

    Attributes:
        run: its folder.
        told: what ``config.json`` says of it: ``run``, ``weights`` (the digest of its published
            weights) and, once they are taken over, ``items_kept``, ``items_new`` and ``moments``.
        fields: those that its model sees, by whose scales numbers are taken.
        seen: how many of each user's first events it was trained on, int64 [U].
        placed: of the new items, how many begin by their events, by content alone, by neither;
            None before that, and where a training is resumed.
    """

    run: Path
    told: dict[str, Any]
    fields: EventFields
    seen: np.ndarray
    placed: tuple[int, int, int] | None = None

    def taken_over(
        self, parts: Parts, log: EventLog, train_end: np.ndarray, checkpoints: Checkpoints
    ) -> Ancestor:
        """Begin a model and its optimizer as this run; the same, telling what was taken.

        Args:
            checkpoints: of the run that begins.
        """
        items = open_vocabulary(self.run, read_run_config(self.run)).rows_of(log.item_vocabulary)
        model = parts.model
        taken = take_over(model, self.run, items, log, train_end, checkpoints)
        moments = bool(taken.moments)
        if moments:
            load_optimizer_state(model, parts.optimizer, taken.moments, parts.table)
        told = {"items_kept": taken.kept, "items_new": taken.new, "moments": moments}
        return replace(self, told=self.told | told, placed=taken.placed)

    def remember(self, run: Path) -> None:
        """Write into the run that begins as this one what it needs to be resumed."""
        write_weights(run / ANCESTOR, {"seen": torch.from_numpy(self.seen.astype(np.int64))})

    def lines(self) -> list[str]:
        """What was taken over, for people."""
        kept, new = self.told["items_kept"], self.told["items_new"]
        moments = "kept" if self.told["moments"] else "begin afresh"
        lines = [f"from: {self.run}, {kept:,} items kept, {new:,} new, moments {moments}"]
        if self.placed is not None and any(self.placed):
            events, content, neither = self.placed
            lines.append(
                f"new items begin by their events: {events:,}, by content: {content:,}, as rare "
                f"ones: {neither:,}"
            )
        return lines


def find_ancestor(
    run: Path,
    given: Path | None,
    log: EventLog,
    train_end: np.ndarray,
    config: RunConfig,
    ranks: Ranks = ALONE,
) -> Ancestor | None:
    """The run that the training in the folder ``run`` begins as, or began as; None for none.

    Args:
        given: the folder that was named; where a training is resumed, or was broken off before its
            first checkpoint, it need not be.
        ranks: who call this together.

    Raises:
        RunError: it has no weights, is ``run`` itself, is another one than that which ``run`` was
            begun from, does not tell what it was trained on, or is damaged.
        ConfigError: its model is of another architecture.
    """
    if given is not None and given.resolve() == run.resolve():
        raise RunError(f"{given} cannot be brought up to date in its own folder: choose another")
    known = read_run_config(run) if (run / "config.json").exists() else None
    before = None if known is None else known.ancestor
    if Checkpoints(run / "checkpoints").any():
        if given is not None:
            _check_same(run, given, before, ranks)
        if known is None or before is None:
            return None
        seen = _remembered(run, log)
        return Ancestor(Path(before["run"]), before, known.fields, seen)
    if given is None and before is None:
        return None
    found = Path(before["run"]) if given is None and before else given
    return _begun(found, log, train_end, config, ranks)


def _begun(
    given: Any, log: EventLog, train_end: np.ndarray, config: RunConfig, ranks: Ranks
) -> Ancestor:
    info = read_run_config(given)
    check_architecture(config.model, info.config.model, given)
    if not (given / WEIGHTS).is_file():
        raise RunError(f"{given} has no weights yet: there is nothing to begin with")
    new = config.training.events == "new"
    seen = np.zeros_like(train_end)
    if new:
        # Looks at the times of all users, which one rank does for all.
        seen = ranks.told(seen_events(given, log, train_end) if ranks.first else seen)
    told = {"run": str(given.resolve()), "weights": _digest(given, ranks)}
    return Ancestor(given, told, info.fields, seen)


def _digest(run: Path, ranks: Ranks) -> str:
    """Of the published weights, which are read once for all ranks."""
    return ranks.told(digest(run / WEIGHTS) if ranks.first else "")


def _check_same(run: Path, given: Path, known: dict[str, Any] | None, ranks: Ranks) -> None:
    """RunError unless a run was begun from what is given; it may be gone by now."""
    if known is None:
        raise RunError(f"{run} was begun by itself, not from {given}: choose another run folder")
    there = (given / WEIGHTS).is_file()
    same = _digest(given, ranks) == known["weights"] if there else False
    if not same and (there or str(given.resolve()) != known["run"]):
        raise RunError(
            f"{run} was begun from {known['run']} as it was then, not from {given} as it is: leave "
            "it away to go on, or choose another run folder"
        )


def _remembered(run: Path, log: EventLog) -> np.ndarray:
    seen = read_weights(run / ANCESTOR).get("seen")
    if seen is None or seen.shape != (log.num_users,):
        raise RunError(f"{run / ANCESTOR} is damaged, or {log.folder} is another log")
    return seen.numpy()
