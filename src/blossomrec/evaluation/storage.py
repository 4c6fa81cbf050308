"""Evaluations on disk: what people read as JSON, and ranks beside it as npz for comparisons."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from blossomrec.errors import RunError, UnknownNameError
from blossomrec.evaluation.evaluation import Evaluation, EvaluationProtocol
from blossomrec.evaluation.metrics import METRICS
from blossomrec.files import digest, read_json, replacing, write_json
from blossomrec.models.baselines import BASELINES

FORMAT = 1
# Where an evaluation of a run or a baseline lies inside its folder.
EVALUATION = "evaluations/{on}-{ranking}.json"
OPTIONAL_ARRAYS = ("top", "popularity")
ARRAYS = ("users", "lengths", "offsets", "ranks", *OPTIONAL_ARRAYS)


def evaluation_path(folder: str | Path, on: str = "test", ranking: str = "full") -> Path:
    """Where a run folder, or one of a baseline, keeps an evaluation."""
    return Path(folder) / EVALUATION.format(on=on, ranking=ranking)


def find_evaluation(path: Path, on: str, ranking: str) -> Path:
    """An evaluation by its own file or by the folder that keeps it; RunError where it is not."""
    if path.suffix == ".json":
        return path
    if not path.exists():
        raise RunError(f"no evaluation in {path}: there is no such folder")
    found = evaluation_path(path, on, ranking)
    if not found.is_file():
        raise RunError(f"{path} holds no {found.name}: run  {_evaluating(path, on, ranking)}")
    return found


def _evaluating(path: Path, on: str, ranking: str) -> str:
    """The command that makes an evaluation of a run or, in a folder of its own, of a baseline."""
    options = shlex.join(["--on", on, "--ranking", ranking])
    folder = shlex.quote(str(path))
    if (path / "config.json").is_file():
        return f"blossomrec evaluate {folder} {options}"
    name = path.name if path.name in BASELINES else "BASELINE"
    return f"blossomrec evaluate {name} --log LOG --out {folder} {options}"


def save_evaluation(evaluation: Evaluation, path: str | Path) -> None:
    """Write ``path`` (.json: protocol, metrics, intervals, slices) and the ranks beside it (.npz).

    Both appear whole or not at all; the JSON names the digest of its npz, so that a pair from two
    different evaluations is refused when it is read.
    """
    path = _json_path(path)
    arrays = {name: getattr(evaluation, name) for name in ARRAYS}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    arrays_path = path.with_suffix(".npz")
    with replacing(arrays_path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    write_json(path, _description(evaluation, digest(arrays_path)))


def load_evaluation(path: str | Path) -> Evaluation:
    """Read what ``save_evaluation`` wrote. Raises RunError where it is missing or damaged."""
    path = _json_path(path)
    arrays_path = path.with_suffix(".npz")
    try:
        description = read_json(path)
        if description["format"] != FORMAT:
            raise RunError(f"{path} has format {description['format']!r}: {FORMAT} is needed")
        if description["ranks"] != digest(arrays_path):
            raise RunError(f"{arrays_path} does not belong to {path}: evaluate again")
        protocol = description["protocol"] | {"ks": tuple(description["protocol"]["ks"])}
        if protocol.get("sampled") is not None:
            protocol["sampled"] = tuple(protocol["sampled"])
        protocol["own_metrics"] = tuple(protocol.get("own_metrics", ()))
        del protocol["candidates"]  # words made from the rest
        arrays: dict[str, Any] = dict.fromkeys(OPTIONAL_ARRAYS)
        with np.load(arrays_path, allow_pickle=False) as stored:
            arrays |= {name: stored[name] for name in stored.files}
        for name in protocol["own_metrics"]:
            METRICS.check("own_metrics", name)
        return Evaluation(
            protocol=EvaluationProtocol(**protocol), seconds=description["seconds"], **arrays
        )
    except UnknownNameError as error:
        raise RunError(f"{path}: {error.missing}") from error
    except FileNotFoundError as error:
        raise RunError(f"no evaluation in {error.filename}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path} is damaged: {error!r}") from error


def _json_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".json":
        raise RunError(f"{path} is no place for an evaluation: its name must end in .json")
    return path


def _description(evaluation: Evaluation, ranks: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "protocol": dataclasses.asdict(evaluation.protocol)
        | {"candidates": evaluation.protocol.candidates},
        "metrics": evaluation.metrics,
        "intervals": evaluation.intervals,
        "slices": [dataclasses.asdict(part) | {"label": part.label} for part in evaluation.slices],
        "seconds": evaluation.seconds,
        "ranks": ranks,
    }
