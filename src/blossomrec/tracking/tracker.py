"""What a tracker promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# How a training ended; one that was interrupted may go on.
Status = Literal["finished", "interrupted", "failed"]


@dataclass(frozen=True)
class Place:
    """Where and as what a training stands in a tracker.

    Attributes:
        folder: for the files of trackers that write some, each into a folder of its own name.
        name: of the training.
        group: what it belongs to, such as a search; empty where it stands alone.
    """

    folder: Path
    name: str
    group: str = ""

    @staticmethod
    def of_run(run: Path) -> Place:
        """That of a training which belongs to nothing else."""
        return Place(run / "tracking", run.resolve().name)


class Tracker:
    """One tracker of one training, such as a run in MLflow.

    Its methods are called in one thread, which is not that of the training: they may wait, and may
    raise anything; what was asked of a tracker that raised is asked again. The constructor is
    called before anything is trained, and contacts nobody.

    Args:
        place: of the training.

    Raises:
        MissingExtraError: a package is not installed.

    Example:
        >>> @TRACKERS.register("print")
        ... class Print(Tracker):
        ...     def log_metrics(self, metrics, step):
        ...         print(self.place.name, step, metrics)
    """

    def __init__(self, place: Place):
        self.place = place

    def start(self, identity: str | None, step: int) -> str:
        """Begin a run, or go on with one that was begun before.

        Args:
            identity: what an earlier call gave; None for a new run.
            step: the last one whose metrics the run has, 0 for none.

        Returns:
            The identity of the run. Another one than was given says that the earlier run is gone
            and that this one is new; it is then told everything.
        """
        return identity or self.place.name

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Note the whole configuration, by names such as ``model.dropout``, and the data.

        Called again when a training goes on; then a few values may be others, such as
        ``training.epochs``.
        """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        """Note finite numbers by names such as ``loss`` or ``validation/ndcg@10``.

        Args:
            step: batches trained so far, rising from call to call; None for what holds of the run
                as a whole, such as ``test-full/ndcg@10``.
        """
        raise NotImplementedError

    def log_artifact(self, path: Path) -> None:
        """Keep a file, or a folder with all that is in it, under its name."""

    def finalize(self, status: Status) -> None:
        """End the run; :meth:`start` may go on with it later."""
