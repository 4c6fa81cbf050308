"""What a run writes down while it trains: ``log.jsonl`` and, as an extra, TensorBoard."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from blossomrec.errors import MissingExtraError


class RunLog:
    """``log.jsonl``, a JSON object for each epoch, and TensorBoard scalars where asked for.

    ``start`` cuts the file back to ``size`` bytes, those that the checkpoint knows of, so that an
    epoch that is trained again after a kill stands there once.
    """

    def __init__(self, run: Path, *, tensorboard: bool = False):
        self.path = run / "log.jsonl"
        self._writer_type = _summary_writer() if tensorboard else None
        self._writer: Any = None
        self._file: Any = None

    def start(self, size: int, step: int) -> None:
        """Open for appending after the first ``size`` bytes; ``step`` is the last one done."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        if self.size < size:
            warnings.warn(
                f"{self.path} was cut short: lines of earlier epochs are lost", stacklevel=2
            )
        else:
            self._file.truncate(size)
        if self._writer_type:
            folder = str(self.path.parent / "tensorboard")
            self._writer = self._writer_type(folder, purge_step=step + 1)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return os.fstat(self._file.fileno()).st_size

    def write(self, record: dict[str, Any]) -> None:
        """Append one line, with the scalars of ``record`` going to TensorBoard as well."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        if self._writer is None:
            return
        for name, value in {**record, **(record.get("validation") or {})}.items():
            if isinstance(value, int | float) and name not in ("step", "epoch"):
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def close(self) -> None:
        for target in (self._file, self._writer):
            if target is not None:
                target.close()


def _summary_writer() -> type:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingExtraError("tensorboard", "track") from error
    return SummaryWriter
