"""TensorBoard: event files in the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blossomrec.errors import MissingExtraError
from blossomrec.tracking.tracker import Place, Status, Tracker


class TensorBoard(Tracker):
    """Scalars and a table of the parameters. TensorBoard keeps no artefacts."""

    def __init__(self, place: Place):
        super().__init__(place)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "track") from error
        self._writer_type = SummaryWriter
        self._writer: Any = None

    def start(self, identity: str | None, step: int) -> str:
        folder = self.place.folder / "tensorboard" / self.place.name
        self._writer = self._writer_type(str(folder), purge_step=step + 1)
        return str(self.place.name)

    def log_parameters(self, parameters: Mapping[str, Any]) -> None:
        rows = [f"| {name} | {value} |" for name, value in parameters.items()]
        self._writer.add_text("parameters", "\n".join(["| | |", "|---|---|", *rows]))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step or 0)
        self._writer.flush()

    def finalize(self, status: Status) -> None:
        self._writer.close()
