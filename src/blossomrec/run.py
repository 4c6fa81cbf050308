"""The run folder: configuration, best weights and vocabulary, everything a recommender needs.

Layout: ``config.json``, ``model.safetensors``, ``vocabulary/``, ``log.jsonl``, ``metrics.json``,
``report.html`` and ``checkpoints/``. Nothing in it is pickled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from blossomrec import __version__
from blossomrec.config import RunConfig, from_dict, shortened, to_dict
from blossomrec.data.features import FeatureTable
from blossomrec.data.log import FEATURES, EventLog
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import ConfigError, DataError, RunError, UnknownNameError, true_or_false
from blossomrec.evaluation import resolve_filter_seen
from blossomrec.files import flush, read_json, remove, replacing, write_json
from blossomrec.models.sequence import SequenceModel, build_model

FORMAT = 2
# What a training and its evaluations leave in a run folder, besides the model.
OF_TRAINING = ("checkpoints", "log.jsonl", "metrics.json", "evaluations", "tensorboard")


class RunInfo(NamedTuple):
    """What ``config.json`` says.

    config: everything that decided the outcome, besides the data.
    num_items, fingerprint: of the item vocabulary.
    data: the folder of the log.
    log: the identity of the log, see ``EventLog.identity``; None in runs that do not tell it.
    filter_viewed: whether items of the history are left out of recommendations, as they are where
        the run is measured.
    features: digest of the table of items in ``features/``; None where the model sees none.
    """

    config: RunConfig
    num_items: int
    fingerprint: str
    data: Path
    log: dict[str, Any] | None
    filter_viewed: bool
    features: str | None = None


def write_run_config(run: str | Path, config: RunConfig, log: EventLog) -> None:
    """Write ``config.json`` and the item vocabulary of ``log`` into the run folder.

    Whoever recommends leaves items of the history out where the evaluation of ``log`` does.

    Raises:
        RunError: the folder already belongs to another vocabulary.
    """
    run, items = Path(run), log.item_vocabulary
    check_vocabulary(run, log)
    data, filters = Path(log.folder).resolve(), resolve_filter_seen(config.evaluation, log)
    features = log.item_features if config.model.content == "on" else None
    digest = None if features is None else features.digest
    info = RunInfo(config, log.num_items, items.fingerprint, data, log.identity, filters, digest)
    _write_description(run, info, items, features)


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
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict) or values.get("format") not in (1, FORMAT):
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise RunError(f"{path} has format {shortened(found)}: this version reads format {FORMAT}")
    _bring_up_to_date(values)
    return _run_info(path, values)


def _bring_up_to_date(values: dict[str, Any]) -> None:
    """Give options of earlier versions the names and values that they have now."""
    config = values.get("config")
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict):
        return
    if values["format"] == 1:
        # Written before there was a choice: all dimensions were rotated.
        model.setdefault("rotary_share", 1.0)
    if model.get("attention_impl") == "native":
        model["attention_impl"] = "cpu"
    for name in ("time_gap", "request_time", "content"):
        # Written before there was anything but ids.
        model.setdefault(name, "off")


def open_vocabulary(run: str | Path, info: RunInfo) -> Vocabulary:
    """The items of a run.

    Raises:
        RunError: it is missing, damaged, or is not the one that ``config.json`` speaks of.
    """
    try:
        vocabulary = Vocabulary.open(Path(run) / "vocabulary")
    except DataError as error:
        raise RunError(str(error)) from error
    if (vocabulary.fingerprint, vocabulary.size) != (info.fingerprint, info.num_items):
        raise RunError(f"{run}: vocabulary/ does not belong to config.json")
    return vocabulary


def open_features(run: str | Path, info: RunInfo) -> FeatureTable | None:
    """The table of items that the model of a run sees; None where it sees none.

    Raises:
        RunError: it is missing, damaged, or is not the one that ``config.json`` speaks of.
    """
    if info.config.model.content != "on":
        return None
    try:
        features = FeatureTable.open(Path(run) / FEATURES)
    except DataError as error:
        raise RunError(str(error)) from error
    if features.digest != info.features:
        raise RunError(f"{run}: {FEATURES}/ does not belong to config.json")
    return features


def write_metrics(run: str | Path, name: str, metrics: dict[str, float]) -> None:
    """Put numbers under a name into ``metrics.json``; RunError where it is damaged."""
    path = Path(run) / "metrics.json"
    try:
        known = read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}; remove it and evaluate again") from error
    if not isinstance(known, dict):
        raise RunError(f"{path} is damaged: it holds no object; remove it and evaluate again")
    write_json(path, known | {name: metrics})


def write_model(
    folder: str | Path,
    info: RunInfo,
    vocabulary: Vocabulary,
    model: SequenceModel,
    *,
    overwrite: bool = False,
) -> None:
    """Write configuration, vocabulary and weights as a folder that needs no log.

    A model that was written so before is replaced; a folder broken off in between has no
    ``config.json`` and is refused by whoever reads it.

    Raises:
        RunError: a training or evaluations lie there, and ``overwrite``, which removes them, is
            not given.
    """
    folder = Path(folder)
    trained = [name for name in OF_TRAINING if (folder / name).exists()]
    if trained and not overwrite:
        raise RunError(
            f"{folder} is the run folder of another model (it holds {', '.join(trained)}): choose "
            "another folder, or give overwrite=True, which removes those"
        )
    folder.mkdir(parents=True, exist_ok=True)
    remove(folder / "config.json")
    flush(folder)
    for name in trained:
        remove(folder / name)
    save_model(folder, model)
    _write_description(folder, info, vocabulary, model.features)


def save_model(run: str | Path, model: SequenceModel) -> None:
    """Write the weights of ``model`` as ``model.safetensors``, replacing those that were there."""
    write_weights(Path(run) / "model.safetensors", model.state_dict())


def load_model(run: str | Path, device: str | torch.device = "cpu") -> SequenceModel:
    """Rebuild the trained model of a run folder, in evaluation mode.

    Raises:
        RunError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    info, path = read_run_config(run), Path(run) / "model.safetensors"
    features = open_features(run, info)
    _check_shapes(path, info, features)
    model = build_model(info.config.model, info.num_items, features)
    model.load_state_dict(read_weights(path))
    return model.to(device).eval()


def _check_shapes(path: Path, info: RunInfo, features: FeatureTable | None) -> None:
    """RunError unless the weights fit the configuration, before memory is taken for either."""
    found, config = _shapes(path), path.with_name("config.json")
    layers = info.config.model.layers
    if layers > len(found):
        raise RunError(f"{path} does not fit {config}: it cannot hold {layers} layers")
    try:
        with torch.device("meta"):
            model = build_model(info.config.model, info.num_items, features)
    except (ConfigError, RuntimeError, OverflowError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{config} describes a model that cannot be: {reason}") from error
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise RunError(
                f"{path} does not fit {config}: {name} has shape "
                f"{found.get(name, 'none')}, the configuration needs {wanted.get(name, 'none')}"
            )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with _weights_file(path), safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def write_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors as one safetensors file, atomically."""
    with replacing(path) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; RunError, naming the path, when it is missing or damaged."""
    with _weights_file(path):
        return load_file(path)


@contextlib.contextmanager
def _weights_file(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise RunError(f"{path} is missing: the run has no trained weights yet")
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is damaged: {error}") from error


def _write_description(
    run: Path, info: RunInfo, vocabulary: Vocabulary, features: FeatureTable | None
) -> None:
    """Write ``vocabulary/`` and ``features/``, where they are not there, and ``config.json``."""
    try:
        held = open_vocabulary(run, info)
    except RunError:
        held = None
    if held is None:
        vocabulary.save(run / "vocabulary")
    if features is not None:
        try:
            open_features(run, info)
        except RunError:
            features.save(run / FEATURES)
    values = {
        "format": FORMAT,
        "blossomrec": __version__,
        "config": to_dict(info.config),
        "num_items": info.num_items,
        "vocabulary": info.fingerprint,
        "data": str(info.data),
        "log": info.log,
        "filter_viewed": info.filter_viewed,
        "features": info.features,
    }
    write_json(run / "config.json", values)


def _run_info(path: Path, values: dict[str, Any]) -> RunInfo:
    def given(name: str, kind: type) -> Any:
        if name not in values:
            raise RunError(f"{path} is not the configuration of a run: {name!r} is missing")
        # A bool counts as an int in Python.
        if type(values[name]) is not kind:
            raise RunError(
                f"{path} is not the configuration of a run: {name} is {shortened(values[name])}"
            )
        return values[name]

    try:
        config = from_dict(given("config", dict))
        # Runs of earlier versions do not say; they were served without items of the history.
        filters = true_or_false("filter_viewed", values.get("filter_viewed", True))
    except UnknownNameError as error:
        raise RunError(f"{path}: {error.missing}") from error
    except ConfigError as error:
        raise RunError(f"{path} is not the configuration of a run: {error}") from error
    return RunInfo(
        config=config,
        num_items=given("num_items", int),
        fingerprint=given("vocabulary", str),
        data=Path(given("data", str)),
        log=given("log", dict) if values.get("log") is not None else None,
        filter_viewed=filters,
        features=given("features", str) if values.get("features") is not None else None,
    )
