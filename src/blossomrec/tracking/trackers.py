"""The trackers of a training, together: what they are told, and when."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blossomrec.config import flat
from blossomrec.errors import BlossomRecError
from blossomrec.registry import TRACKERS
from blossomrec.tracking.delivery import Delivery, Told, read_told, told_path
from blossomrec.tracking.tracker import Place, Status

# The files and folders of a run that are its model.
MODEL = ("model.safetensors", "vocabulary", "features", "users")


class Trackers:
    """Tells the trackers of a training, none of which stops it or holds it up.

    A context: leaving it says how the training ended. One that fails is told of in a warning, once.

    Args:
        run: the run folder, which remembers what each tracker was told.
        names: in ``TRACKERS``; empty for none.
        training: what is trained on what, nested; JSON-ready.
        place: of the training in the trackers; None is that of a run by itself.
        with_model: give them the model in the end.

    Raises:
        UnknownNameError: there is no such tracker.
        MissingExtraError: the package of a tracker is not installed.
    """

    def __init__(
        self,
        run: Path,
        names: Sequence[str] = (),
        training: Mapping[str, Any] | None = None,
        *,
        place: Place | None = None,
        with_model: bool = False,
    ):
        self.run, self.place = run, place or Place.of_run(run)
        self._training, self._with_model = dict(training or {}), with_model
        self._deliveries = [Delivery(name, TRACKERS.get(name)(self.place)) for name in names]
        self._best: Mapping[str, Any] | None = None
        self._started, self._warned = False, set[str]()

    def start(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Begin, or go on.

        Args:
            step: the last one that is done.
            records: lines of ``log.jsonl`` so far, of which trackers get those that they missed.
        """
        digest = hashlib.sha256(json.dumps(self._training, sort_keys=True).encode()).hexdigest()
        place = {"name": self.place.name, "group": self.place.group}
        place["folder"] = os.path.relpath(self.place.folder, self.run)
        parameters = flat(self._training.get("config", {}))
        parameters |= {
            f"data.{name}": value for name, value in self._training.get("data", {}).items()
        }
        for delivery in self._deliveries:
            path = told_path(self.run, delivery.name)
            known = read_told(path)
            # Begun again from the first step, only the same training comes to the same numbers.
            if known is not None and not step and known.training != digest:
                known = None
            delivery.start(path, known, digest, place)
            delivery.ask(lambda tracker=delivery.tracker: tracker.log_parameters(parameters))
        self._started = True
        for record in records:
            self.log(record)

    def log(self, record: Mapping[str, Any]) -> None:
        """Tell a line of ``log.jsonl``."""
        if record.get("best"):
            self._best = record
        numbers = _numbers(record) | _numbers(record.get("validation") or {}, "validation/")
        step = numbers.pop("step")
        for delivery in self._deliveries:
            delivery.log_metrics(numbers, int(step))
        self._warn()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *others: object) -> None:
        if not self._started:
            return
        status: Status = "finished"
        if kind is not None:
            status = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
        best = {} if self._best is None else _numbers(self._best.get("validation") or {}, "best/")
        if best and self._best is not None:
            best["best/epoch"] = float(self._best["epoch"])
        names = ("config.json", *(MODEL if self._with_model and status == "finished" else ()))
        self.finish(best, [self.run / name for name in names], status)

    def finish(
        self, metrics: Mapping[str, float], artifacts: Iterable[Path], status: Status
    ) -> None:
        """Tell what holds of the run as a whole, and that it has ended."""
        paths = [path for path in artifacts if path.exists()]

        def tell(delivery: Delivery) -> None:
            tracker = delivery.tracker
            if metrics:
                delivery.ask(lambda: tracker.log_metrics(metrics, None))
            for path in paths:
                delivery.ask(lambda path=path: tracker.log_artifact(path))
            delivery.ask(lambda: tracker.finalize(status))

        for delivery in self._deliveries:
            tell(delivery)
        for delivery in self._deliveries:
            delivery.finish()
        self._warn()

    def _warn(self) -> None:
        for delivery in self._deliveries:
            error = delivery.failure
            if error is not None and delivery.name not in self._warned:
                self._warned.add(delivery.name)
                told = f"tracker {delivery.name} failed, all else goes on: {_in_short(error)}"
                warnings.warn(told, stacklevel=3)


def tell_trackers(run: Path, metrics: Mapping[str, float], artifacts: Sequence[Path] = ()) -> None:
    """Tell the trackers of a trained run what was found out of it later.

    One that fails, or is not installed here, is told of in a warning.

    Args:
        metrics: by names such as ``test-full/ndcg@10``.
        artifacts: files and folders.
    """
    for path in sorted((run / "tracking").glob("*.json")):
        try:
            told = read_told(path)
            if told is not None:
                _tell_one(run, path, told, metrics, artifacts)
        except BlossomRecError as error:
            warnings.warn(f"tracker {path.stem} is not told: {error}", stacklevel=2)


def _tell_one(
    run: Path, path: Path, told: Told, metrics: Mapping[str, float], artifacts: Sequence[Path]
) -> None:
    place = Place(run / told.place["folder"], told.place["name"], told.place["group"])
    trackers = Trackers(run, [path.stem], place=place)
    (delivery,) = trackers._deliveries
    delivery.start(path, told, told.training, told.place)
    trackers.finish(_numbers(metrics), artifacts, "finished")


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a mapping."""
    return {
        f"{prefix}{name}": float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _in_short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
