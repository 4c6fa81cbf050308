"""Checkpoints: folders of tensors and numbers that appear whole, are verified, and grow old."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import time
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from blossomrec.errors import RunError, shortened
from blossomrec.files import digest, new_folder, read_json, remove, replacing
from blossomrec.models.sequence import SequenceModel
from blossomrec.ranks import ALONE, Ranks
from blossomrec.run.weights import write_weights

KEPT = 2
# Things saved whose copies in host memory are kept until they are on disk.
MOST_UNWRITTEN = 2
FORMAT = 1
STEP = re.compile(r"step-\d{10}")
BEST = re.compile(r"best-\d{10}\.safetensors")
TENSORS = "tensors.safetensors"
SHARDS = "shards"
SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
DAMAGED = (OSError, ValueError, KeyError, TypeError, SafetensorError)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: all tensors by name, the JSON state, the best weights if any."""

    path: Path
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]
    best: Path | None


class Checkpoints:
    """The folder ``checkpoints/`` of a run: ``step-*/`` and the ``best-*.safetensors`` they need.

    A checkpoint is a folder with ``tensors.safetensors``, or in ``shards/`` the files of several
    ranks, and ``state.json``; the latter holds the size and SHA-256 of every file it relies on, and
    its own, so that damage shows. Whatever else lies in ``checkpoints/`` is nobody's: it is neither
    read nor removed.

    What is saved is written beside the training, in the order in which it was saved; each thing
    appears whole. :meth:`finish` waits for it. After something that could not be written nothing
    more is: a checkpoint would rely on it.

    Attributes:
        ranks: who call every method together.
        latest: the newest checkpoint that is on disk.
    """

    ranks: Ranks = ALONE

    def __init__(self, folder: Path):
        self.folder = folder
        self.latest: Path | None = None
        self._best: dict[str, Any] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._unwritten: deque[Future[None]] = deque()
        self._failed = False

    def of_run(self, run: Path, model: SequenceModel) -> Checkpoints:
        """Those of another run, for the same ranks.

        Args:
            model: of that run, which has a part of the item table where ranks share it.
        """
        return Checkpoints(run / "checkpoints")

    def any(self) -> bool:
        """Is there anything to resume from, good or damaged?"""
        return bool(self._paths())

    def save_best(self, step: int, weights: dict[str, torch.Tensor]) -> None:
        """Publish the best weights so far; the checkpoints saved from now on refer to them.

        Args:
            weights: in host memory, which nothing changes any more.
        """
        self._aside(self._write_best, step, weights)

    def finish(self) -> None:
        """Wait until what was saved is on disk; raises what went wrong with it."""
        while self._unwritten:
            self._unwritten.popleft().result()

    def _aside(self, write: Callable[..., None], *what: Any) -> None:
        """Write something after all else; waits where copies of much more would be kept."""
        while len(self._unwritten) >= MOST_UNWRITTEN:
            self._unwritten.popleft().result()
        self._unwritten.append(self._writer.submit(self._try, write, *what))

    def _try(self, write: Callable[..., None], *what: Any) -> None:
        if self._failed:
            return
        try:
            write(*what)
        except BaseException:
            self._failed = True
            raise

    def _write_best(self, step: int, weights: dict[str, torch.Tensor]) -> None:
        path = self.folder / f"best-{step:010d}.safetensors"
        write_weights(path, weights)
        self._best = described(path)
        self.publish(path)

    def publish(self, best: Path) -> None:
        """Make ``best`` the ``model.safetensors`` of the run."""
        with replacing(self.folder.parent / "model.safetensors") as temporary:
            shutil.copyfile(best, temporary)

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Write the checkpoint of ``step`` and drop those that are older than the newest two.

        Args:
            tensors: in host memory, which nothing changes any more.
            state: likewise, JSON-ready.
        """
        self._aside(self._write, self.folder / f"step-{step:010d}", tensors, state)

    def _write(self, path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        with new_folder(path) as folder:
            save_file(tensors, folder / TENSORS)
            self._describe(folder, described(folder / TENSORS), state)
        self.latest = path
        self._prune()

    def _describe(self, folder: Path, tensors: Any, state: dict[str, Any]) -> None:
        """Write ``state.json``; ``tensors`` describes their file, or a list of several ranks'."""
        content = {"format": FORMAT, "tensors": tensors, "best": self._best, "state": state}
        text = json.dumps({"sha256": _content_digest(content), "content": content})
        (folder / "state.json").write_text(text)

    def newest(self) -> Checkpoint | None:
        """The newest undamaged checkpoint, None where there is none at all.

        Raises:
            RunError: there are checkpoints but every one is damaged.
        """
        self.finish()
        self._sweep()
        paths = self._paths()
        for path in reversed(paths):
            try:
                checkpoint, best = self._read(path)
            except DAMAGED as error:
                warnings.warn(f"checkpoint {path} is damaged, skipping it: {error}", stacklevel=2)
                continue
            self.latest, self._best = path, best
            self._drop_newer(path)
            return checkpoint
        if paths:
            raise RunError(f"every checkpoint in {self.folder} is damaged: train in another folder")
        return None

    def peek(self) -> Checkpoint | None:
        """The newest undamaged checkpoint, None where there is none; changes nothing."""
        for path in reversed(self._paths()):
            with contextlib.suppress(*DAMAGED):
                return self._read(path)[0]
        return None

    def _read(self, path: Path) -> tuple[Checkpoint, dict[str, Any] | None]:
        stored = read_json(path / "state.json")
        content = stored["content"]
        if stored["sha256"] != _content_digest(content):
            raise ValueError("state.json was altered")
        if content["format"] != FORMAT:
            raise ValueError(f"it has format {content['format']!r}, not {FORMAT}")
        tensors, best = content["tensors"], content["best"]
        shared = isinstance(tensors, list)
        for each in tensors if shared else [tensors]:
            place = path / SHARDS if shared else path
            _verify(place, each, SHARD if shared else re.compile(re.escape(TENSORS)))
        if shared:
            _refuse_others(path / SHARDS, {each["name"] for each in tensors})
        if best is not None:
            _verify(self.folder, best, BEST)
        if not isinstance(content["state"], dict):
            raise ValueError("state.json holds no state")
        found = self.folder / best["name"] if best is not None else None
        return Checkpoint(path, self._load(path, shared), content["state"], found), best

    def _load(self, path: Path, shared: bool) -> dict[str, torch.Tensor]:
        """All tensors of a checkpoint, which several ranks wrote or one."""
        if not shared:
            return load_file(path / TENSORS)
        from blossomrec.training.sharded.shards import load_shards

        return load_shards(path / SHARDS)

    def _paths(self) -> list[Path]:
        found = (path for path in self.folder.glob("step-*") if STEP.fullmatch(path.name))
        return sorted(path for path in found if path.is_dir() and not path.is_symlink())

    def _sweep(self) -> None:
        # What a killed process was just writing.
        for path in self.folder.glob(".*.tmp"):
            name = path.name.removeprefix(".").removesuffix(".tmp")
            if STEP.fullmatch(name) or BEST.fullmatch(name):
                remove(path)

    def _drop_newer(self, path: Path) -> None:
        # A damaged newer one would otherwise count among the newest two and push a good one out.
        for other in self._paths():
            if other.name > path.name:
                shutil.rmtree(other)

    def _prune(self) -> None:
        paths = self._paths()
        for path in paths[:-KEPT]:
            shutil.rmtree(path)
        needed = {self._best["name"]} if self._best else set()
        needed |= {_best_of(path) for path in paths[-KEPT:]}
        for path in self.folder.glob("best-*.safetensors"):
            if BEST.fullmatch(path.name) and path.name not in needed:
                remove(path)


class Pace:
    """Tells when a checkpoint is due for all of them to take ``overhead`` of the time."""

    # Seconds that the first checkpoint is taken to last.
    FIRST = 0.1

    def __init__(self, overhead: float):
        self.overhead = overhead
        self._wait = self.FIRST / overhead
        self._since = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._since > self._wait

    def saved(self, seconds: float) -> None:
        """A checkpoint that took so long was just finished."""
        self._wait = seconds / self.overhead
        self._since = time.monotonic()


def described(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file."""
    return {"name": path.name, "size": path.stat().st_size, "sha256": digest(path)}


def _verify(folder: Path, expected: dict[str, Any], names: re.Pattern[str]) -> None:
    """ValueError unless a file of the folder itself, by one of the names, is as it is described."""
    name = expected["name"]
    if not isinstance(name, str) or not names.fullmatch(name):
        raise ValueError(f"it names the file {shortened(name)}")
    path = folder / name
    if path.is_symlink():
        raise ValueError(f"{name} is a link")
    size = path.stat().st_size
    if size != expected["size"]:
        raise ValueError(f"{name} has {size} bytes, not {shortened(expected['size'])}")
    if digest(path) != expected["sha256"]:
        raise ValueError(f"{name} was altered")


def _refuse_others(folder: Path, names: set[str]) -> None:
    """ValueError where a folder of which all is read has something that is not named."""
    others = {path.name for path in folder.iterdir()} - names
    if others or not names:
        raise ValueError(f"{SHARDS} holds {shortened(sorted(others))} besides what is named")


def _best_of(path: Path) -> str | None:
    """The name of the best weights that a checkpoint needs; None also where it is damaged."""
    try:
        return read_json(path / "state.json")["content"]["best"]["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _content_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
