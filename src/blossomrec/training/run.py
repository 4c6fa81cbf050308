"""The run folder: configuration, best weights and vocabulary, everything a recommender needs.

Layout: ``config.json``, ``model.safetensors``, ``vocabulary/``, ``log.jsonl``, ``metrics.json``,
``report.html`` and ``checkpoints/``. Nothing in it is pickled.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from blossomrec import __version__
from blossomrec.arguments import true_or_false
from blossomrec.config import RunConfig, from_dict, to_dict
from blossomrec.data.log import EventLog
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import DataError, RunError
from blossomrec.evaluation import resolve_filter_seen
from blossomrec.models.sequence import SequenceModel, build_model
from blossomrec.training.files import new_folder, replacing, write_json

FORMAT = 2


class RunInfo(NamedTuple):
    """What ``config.json`` says; ``fingerprint`` is the vocabulary's, ``data`` the log's folder.

    ``filter_viewed``: whether items of the history are left out of recommendations, as they are
    where the run is measured.
    """

    config: RunConfig
    num_items: int
    fingerprint: str
    data: Path
    filter_viewed: bool


def write_run_config(
    run: str | Path, config: RunConfig, log: EventLog, *, filter_viewed: bool | None = None
) -> None:
    """Write ``config.json`` and copy the item vocabulary of ``log`` into the run folder.

    ``filter_viewed`` is kept for whoever recommends; None is as ``log`` is evaluated.

    Raises:
        RunError: the folder already belongs to another vocabulary.
    """
    run = Path(run)
    check_vocabulary(run, log)
    if not _holds_vocabulary(run, log.item_vocabulary.fingerprint):
        with new_folder(run / "vocabulary") as folder:
            shutil.copytree(Path(log.folder) / "items", folder, dirs_exist_ok=True)
    if filter_viewed is None:
        filter_viewed = resolve_filter_seen(config.evaluation, log)
    values = {
        "format": FORMAT,
        "blossomrec": __version__,
        "config": to_dict(config),
        "num_items": int(log.num_items),
        "vocabulary": log.item_vocabulary.fingerprint,
        "data": str(Path(log.folder).resolve()),
        "filter_viewed": filter_viewed,
    }
    write_json(run / "config.json", values)


def check_vocabulary(run: Path, log: EventLog) -> None:
    """Raise RunError when ``run`` holds a configuration that belongs to another item vocabulary."""
    if not (run / "config.json").exists():
        return
    known, given = read_run_config(run).fingerprint, log.item_vocabulary.fingerprint
    if known != given:
        raise RunError(
            f"{run} belongs to another vocabulary: its items have the fingerprint {known}, "
            f"those of {log.folder} have {given}; choose another run folder"
        )


def read_run_config(run: str | Path) -> RunInfo:
    """Read ``config.json``.

    Raises:
        RunError: the folder or the file is missing, damaged, or of another format.
    """
    path = Path(run) / "config.json"
    if not path.is_file():
        raise RunError(f"{path} is missing: {run} is not a run folder")
    try:
        values = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict) or values.get("format") not in (1, FORMAT):
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise RunError(f"{path} has format {found!r}: this version reads format {FORMAT}")
    if values["format"] == 1 and isinstance(values.get("config"), dict):
        # Written before there was a choice: all dimensions were turned.
        model = values["config"].get("model")
        if isinstance(model, dict):
            model.setdefault("rotary_share", 1.0)
    return _run_info(path, values)


def write_metrics(run: str | Path, name: str, metrics: dict[str, float]) -> None:
    """Put numbers under a name into ``metrics.json``; RunError where it is damaged."""
    path = Path(run) / "metrics.json"
    try:
        known = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}; remove it and evaluate again") from error
    write_json(path, known | {name: metrics})


def save_model(run: str | Path, model: SequenceModel) -> None:
    """Write the weights of ``model`` as ``model.safetensors``, replacing those that were there."""
    write_weights(Path(run) / "model.safetensors", model.state_dict())


def load_model(run: str | Path, device: str | torch.device = "cpu") -> SequenceModel:
    """Rebuild the trained model of a run folder, in evaluation mode.

    Raises:
        RunError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    info, path = read_run_config(run), Path(run) / "model.safetensors"
    weights = read_weights(path)
    model = build_model(info.config.model, info.num_items)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise RunError(
                f"{path} does not fit {path.with_name('config.json')}: {name} has shape "
                f"{found.get(name, 'none')}, the configuration needs {wanted.get(name, 'none')}"
            )
    model.load_state_dict(weights)
    return model.to(device).eval()


def write_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors as one safetensors file, atomically."""
    with replacing(path) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; RunError, naming the path, when it is missing or damaged."""
    if not path.is_file():
        raise RunError(f"{path} is missing: the run has no trained weights yet")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is damaged: {error}") from error


def _holds_vocabulary(run: Path, fingerprint: str) -> bool:
    try:
        return Vocabulary.open(run / "vocabulary").fingerprint == fingerprint
    except DataError:
        return False


def _run_info(path: Path, values: dict[str, Any]) -> RunInfo:
    try:
        return RunInfo(
            config=from_dict(values["config"]),
            num_items=int(values["num_items"]),
            fingerprint=str(values["vocabulary"]),
            data=Path(values["data"]),
            # Runs of earlier versions do not say; they were served without items of the history.
            filter_viewed=true_or_false("filter_viewed", values.get("filter_viewed", True)),
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise RunError(f"{path} is not the configuration of a run: {reason}") from error
