"""Weights & Biases: offline in the run folder, unless ``WANDB_MODE`` says otherwise."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blossomrec.errors import MissingExtraError
from blossomrec.tracking.tracker import Place, Status, Tracker


class WandB(Tracker):
    """A run in the project ``WANDB_PROJECT``, or ``blossomrec``.

    Offline, each stretch of a training that was stopped lies in a folder of its own, with the id of
    one run; ``wandb sync`` sends them.
    """

    def __init__(self, place: Place):
        super().__init__(place)
        # Nothing is sent anywhere unless it is asked for.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtraError(error.name or "wandb", "wandb") from error
        self._wandb = wandb
        self._run: Any = None

    def start(self, identity: str | None, step: int) -> str:
        self.place.folder.mkdir(parents=True, exist_ok=True)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "blossomrec"),
            name=self.place.name,
            group=self.place.group or None,
            id=identity or uuid.uuid4().hex[:12],
            resume="allow",
            dir=self.place.folder,
            mode=os.environ.get("WANDB_MODE", "offline"),
            # A run of the program around us is another one.
            reinit="create_new",
            settings=self._wandb.Settings(silent=True, console="off"),
        )
        return self._run.id

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        self._run.config.update(dict(parameters), allow_val_change=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        if step is None:
            self._run.summary.update(dict(metrics))
        else:
            self._run.log(dict(metrics), step=step, commit=True)

    def log_artifact(self, path: Path) -> None:
        path = path.resolve()
        files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
        for file in files:
            self._run.save(str(file), base_path=str(path.parent), policy="now")

    def finalize(self, status: Status) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)
