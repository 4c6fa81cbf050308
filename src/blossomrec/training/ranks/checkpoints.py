"""Checkpoints of a training that ranks share: each writes what it has, beside the training."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blossomrec.errors import RunError
from blossomrec.files import new_folder, replacing
from blossomrec.models.sequence import SequenceModel
from blossomrec.ranks import Ranks
from blossomrec.training.checkpoint import (
    SHARDS,
    TENSORS,
    Checkpoint,
    Checkpoints,
    described,
)
from blossomrec.training.sharded.shards import TABLE, load_shards, save_shards

# What of the best weights ranks have parts of.
PARTS = (TABLE, "trained")
# Bytes that travel to rank 0 at a time.
PIECE_BYTES = 64 << 20
NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}


class ShardedCheckpoints(Checkpoints):
    """The checkpoints of several ranks, on a disk that all of them see.

    A checkpoint appears whole, when every rank has written. The best weights are one file, as those
    of a rank alone: parts travel to rank 0 a piece at a time.

    Args:
        folder: as of :class:`Checkpoints`.
        ranks: who call every method together.
        model: which has a part of the item table.
    """

    def __init__(self, folder: Path, ranks: Ranks, model: SequenceModel):
        super().__init__(folder)
        self.ranks, self.model = ranks, model
        self.num_rows = model.num_items + model.extra_rows

    def of_run(self, run: Path, model: SequenceModel) -> Checkpoints:
        return ShardedCheckpoints(run / "checkpoints", self.ranks, model)

    def any(self) -> bool:
        return self.ranks.told(super().any())

    def save_best(self, step: int, weights: dict[str, Tensor]) -> None:
        self.finish()
        path = self.folder / f"best-{step:010d}.safetensors"
        totals = {TABLE: self.num_rows, "trained": self.model.num_items}
        write_gathered(path, weights, totals, self.ranks)
        if self.ranks.first:
            self._best = described(path)
        self.publish(path)

    def publish(self, best: Path) -> None:
        if self.ranks.first:
            super().publish(best)
        self.ranks.agree(0)

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.finish()
        tensors = dict(tensors)
        if "model.trained" in tensors:
            # Its rows end with the items; it is so small that it is stored as a whole.
            parts = self.ranks.gathered(tensors["model.trained"].numpy())
            tensors["model.trained"] = torch.cat([torch.from_numpy(each) for each in parts])
        path = self.folder / f"step-{step:010d}"
        self._aside(self._write, path, tensors, state)

    def newest(self) -> Checkpoint | None:
        return self._shared(super().newest)

    def peek(self) -> Checkpoint | None:
        return self._shared(super().peek)

    def _shared(self, find: Callable[[], Checkpoint | None]) -> Checkpoint | None:
        """The checkpoint that rank 0 finds, of which each rank has what is its own."""
        found, error = None, None
        if self.ranks.first:
            try:
                checkpoint = find()
                if checkpoint is not None:
                    best = None if checkpoint.best is None else str(checkpoint.best)
                    found = str(checkpoint.path), checkpoint.state, best
            except RunError as wrong:
                error = str(wrong)
        found, error = self.ranks.told((found, error))
        if error is not None:
            raise RunError(error)
        if found is None:
            return None
        path, state, best = Path(found[0]), found[1], None if found[2] is None else Path(found[2])
        self.latest = path
        tensors = load_shards(
            path if (path / TENSORS).exists() else path / SHARDS, self.ranks, self.num_rows
        )
        if "model.trained" in tensors:
            held = self.model.held_items
            tensors["model.trained"] = tensors["model.trained"][held.start : held.stop]
        return Checkpoint(path, tensors, state, best)

    def _load(self, path: Path, shared: bool) -> dict[str, Tensor]:
        # All ranks read, once the first has found what.
        return {}

    def _write(self, path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        with new_folder(path) if self.ranks.first else nullcontext() as given:
            folder = Path(self.ranks.told(str(given), aside=True))
            save_shards(folder / SHARDS, tensors, self.ranks, self.num_rows)
            own = sorted((folder / SHARDS).glob(f"shard-{self.ranks.rank + 1:05d}-*"))
            files = self.ranks.gathered([described(each) for each in own], aside=True)
            if self.ranks.first:
                self._describe(folder, [each for of_rank in files for each in of_rank], state)
        self.latest = path
        if self.ranks.first:
            self._prune()
        self.ranks.told(None, aside=True)


def write_gathered(
    path: Path, tensors: dict[str, Tensor], totals: dict[str, int], ranks: Ranks
) -> None:
    """Write one safetensors file of tensors in host memory, atomically, on rank 0.

    Args:
        tensors: by name; the same on all ranks, but for those in parts.
        totals: rows of the whole, of those of which ranks have parts.
    """
    with replacing(path) if ranks.first else nullcontext() as temporary:
        file = temporary.open("wb") if temporary is not None else None
        with file or nullcontext():
            if file is not None:
                file.write(_header(tensors, totals))
            for name, tensor in tensors.items():
                plain = tensor.contiguous().view(len(tensor) if tensor.ndim else 1, -1)
                if name not in totals:
                    if file is not None:
                        file.write(_bytes(plain))
                    continue
                rows = max(1, PIECE_BYTES // max(1, plain[:1].nbytes))
                sizes = ranks.gathered(len(plain))
                for piece in ranks.pieces(plain, sizes, rows):
                    assert file is not None
                    file.write(_bytes(piece))


def _header(tensors: dict[str, Tensor], totals: dict[str, int]) -> bytes:
    """What a safetensors file begins with: sizes, types and places."""
    entries, place = {}, 0
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        if name in totals:
            shape[0] = totals[name]
        size = torch.Size(shape).numel() * tensor.element_size()
        kind = NAMES[tensor.dtype]
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> Any:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data
