"""The run folder: configuration, best weights and vocabulary, everything a recommender needs.

Layout: ``config.json``, ``model.safetensors``, ``vocabulary/``, ``features/`` where the log has a
table of items, ``users/`` where the model sees one of users, ``log.jsonl``, ``metrics.json``,
``report.html``, ``checkpoints/`` and ``tracking/``; ``trained_on/``, how far histories were trained
on, and of a run that brought another one up to date ``ancestor.safetensors``. Nothing in it is
pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from blossomrec import __version__
from blossomrec.config import RunConfig, from_dict, rename_options, to_dict
from blossomrec.data.features import FeatureTable, Vectors
from blossomrec.data.fields import EventFields, Tables
from blossomrec.data.log import FEATURES, USERS, EventLog
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import (
    ConfigError,
    DataError,
    RunError,
    UnknownNameError,
    shortened,
    true_or_false,
)
from blossomrec.evaluation import resolve_filter_seen
from blossomrec.files import digest, flush, read_json, remove, replacing, write_json
from blossomrec.models.inputs import seen_fields
from blossomrec.models.sequence import SequenceModel, build_model
from blossomrec.models.shard import unfilled
from blossomrec.ranks import ALONE, Ranks

FORMAT = 2
# The files whose content makes a version; the configuration has fingerprints of all others.
VERSIONED = ("config.json", "model.safetensors")
# Of weights, read at a time.
PIECE_BYTES = 64 << 20
# What a training and its evaluations leave in a run folder, besides the model.
TRAINED_ON, ANCESTOR = "trained_on", "ancestor.safetensors"
OF_TRAINING = (
    *("checkpoints", "log.jsonl", "metrics.json", "evaluations", "tracking"),
    # Written there before there were other trackers.
    "tensorboard",
    *(TRAINED_ON, ANCESTOR),
)


class RunInfo(NamedTuple):
    """What ``config.json`` says.

    config: everything that decided the outcome, besides the data.
    num_items, fingerprint: of the item vocabulary.
    data: the folder of the log.
    log: the identity of the log, see ``EventLog.identity``; None in runs that do not tell it.
    filter_viewed: whether items of the history are left out of recommendations, as they are where
        the run is measured.
    features: digest of the table of items in ``features/``, which rules read, without its vectors
        where the model sees none of it; None where there is none.
    users: digest of ``users/``, the users with what a table says of them; None where the model
        sees none.
    fields: kinds of events and columns of context that the model sees.
    ancestor: the run that it began as, and what was taken of it; None where it began by itself.
    """

    config: RunConfig
    num_items: int
    fingerprint: str
    data: Path
    log: dict[str, Any] | None
    filter_viewed: bool
    features: str | None = None
    users: str | None = None
    fields: EventFields = EventFields()
    ancestor: dict[str, Any] | None = None


def write_run_config(
    run: str | Path,
    config: RunConfig,
    log: EventLog,
    *,
    fields: EventFields | None = None,
    ancestor: dict[str, Any] | None = None,
) -> None:
    """Write ``config.json`` and the item vocabulary of ``log`` into the run folder.

    Whoever recommends leaves items of the history out where the evaluation of ``log`` does.

    Args:
        fields: those that the model sees; None for those of the log that it asks for.
        ancestor: see :class:`RunInfo`.

    Raises:
        RunError: the folder already belongs to another vocabulary.
    """
    run, items = Path(run), log.item_vocabulary
    check_vocabulary(run, log)
    data, filters = Path(log.folder).resolve(), resolve_filter_seen(config.evaluation, log)
    tables, model = log.tables, config.model
    features = tables.items if model.content == "on" else _without_vectors(tables.items)
    users = tables.users if model.user_table == "on" else None
    known = Known(items, features, None if users is None else (log.user_vocabulary, users))
    info = RunInfo(
        config,
        log.num_items,
        items.fingerprint,
        data,
        log.identity,
        filters,
        None if features is None else features.digest,
        known.users_digest,
        seen_fields(model, tables.fields) if fields is None else fields,
        ancestor,
    )
    _write_description(run, info, known)


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
    bring_up_to_date(values.get("config"), values["format"])
    return _run_info(path, values)


def bring_up_to_date(config: Any, version: int = 1) -> None:
    """Give options of earlier versions the names and values that they have now.

    Args:
        config: nested; what is none stays as it is.
        version: format of the run folder; the first one where it is not told.
    """
    rename_options(config)
    model, training = (
        config.get(name) if isinstance(config, dict) else None for name in ("model", "training")
    )
    if isinstance(training, dict):
        # Written before weights of the log counted.
        training.setdefault("weights", "off")
        # Written before they were averaged.
        training.setdefault("ema_decay", 0.0)
    if not isinstance(model, dict):
        return
    if version == 1:
        # Written before there was a choice: all dimensions were rotated.
        model.setdefault("rotary_share", 1.0)
    # Written before there was another.
    model.setdefault("fusion", "gated")
    model.setdefault("near_bias", "on")
    if model["near_bias"] == "auto":
        # Once it was decided by what the model is trained for.
        model["near_bias"] = "off" if model.get("backbone") == "bert4rec" else "on"
    if model.get("attention_impl") == "native":
        model["attention_impl"] = "cpu"
    later = ("time_gap", "request_time", "content", "event_kinds", "request_kind", "context")
    for name in (*later, "user_table", "repeats"):
        # Written before the model could see it, or mix it in.
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


def open_tables(run: str | Path, info: RunInfo) -> Tables:
    """What the model of a run knows of items, users and events.

    Raises:
        RunError: a table is missing, damaged, or is not the one that ``config.json`` speaks of.
    """
    users = open_users(run, info)
    return Tables(open_features(run, info), None if users is None else users[1], info.fields)


def open_features(run: str | Path, info: RunInfo) -> FeatureTable | None:
    """The table of items that the model of a run sees; None where it sees none.

    Raises:
        RunError: it is missing, damaged, or is not the one that ``config.json`` speaks of.
    """
    if info.config.model.content != "on":
        return None
    if info.features is None:
        raise RunError(f"{run}: config.json speaks of no table of items, which its model needs")
    return open_item_table(run, info)


def run_version(run: str | Path) -> str:
    """The name of a run's content, 12 hexadecimal digits: weights, configuration and vocabulary."""
    digests = " ".join(digest(Path(run) / name) for name in VERSIONED)
    return hashlib.sha256(digests.encode()).hexdigest()[:12]


def open_item_table(run: str | Path, info: RunInfo) -> FeatureTable | None:
    """What the run keeps of the table of items, also where its model sees none of it; None for
    none.

    Raises:
        RunError: it is missing, damaged, or is not the one that ``config.json`` speaks of.
    """
    if info.features is None:
        return None
    try:
        features = FeatureTable.open(Path(run) / FEATURES)
    except DataError as error:
        raise RunError(str(error)) from error
    if features.digest != info.features:
        raise RunError(f"{run}: {FEATURES}/ does not belong to config.json")
    return features


def _without_vectors(table: FeatureTable | None) -> FeatureTable | None:
    """What rules read of a table of items, where the model sees none of it."""
    if table is None:
        return None
    kept = {name: each for name, each in table.items() if not isinstance(each, Vectors)}
    return FeatureTable(kept, table.num_rows) if kept else None


def open_users(run: str | Path, info: RunInfo) -> tuple[Vocabulary, FeatureTable] | None:
    """The users whom the model of a run knows, with the table of them; None where it sees none.

    Raises:
        RunError: something is missing, damaged, or is not what ``config.json`` speaks of.
    """
    if info.config.model.user_table != "on":
        return None
    folder = Path(run) / USERS
    try:
        users = Vocabulary.open(folder), FeatureTable.open(folder / FEATURES)
    except DataError as error:
        raise RunError(str(error)) from error
    if _users_digest(*users) != info.users:
        raise RunError(f"{run}: {USERS}/ does not belong to config.json")
    return users


class Known(NamedTuple):
    """What is written beside a model: items, what a table says of them, and users with theirs."""

    items: Vocabulary
    features: FeatureTable | None
    users: tuple[Vocabulary, FeatureTable] | None

    @property
    def users_digest(self) -> str | None:
        return None if self.users is None else _users_digest(*self.users)


def _users_digest(vocabulary: Vocabulary, table: FeatureTable) -> str:
    text = f"{vocabulary.fingerprint} {vocabulary.size} {table.digest}"
    return hashlib.sha256(text.encode()).hexdigest()


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
    known: Known,
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
    _write_description(folder, info, known)


def save_model(run: str | Path, model: SequenceModel) -> None:
    """Write the weights of ``model`` as ``model.safetensors``, replacing those that were there."""
    write_weights(Path(run) / "model.safetensors", model.state_dict())


def load_model(
    run: str | Path, device: str | torch.device = "cpu", ranks: Ranks = ALONE
) -> SequenceModel:
    """Rebuild the trained model of a run folder, in evaluation mode.

    Args:
        ranks: who share the item table; this one's model has its rows, and no others are read.

    Raises:
        RunError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    info, path = read_run_config(run), Path(run) / "model.safetensors"
    tables = open_tables(run, info)
    _check_shapes(path, info, tables)
    with unfilled():
        model = build_model(info.config.model, info.num_items, tables, ranks)
    _read_into(model, path)
    return model.to(device).eval()


def _check_shapes(path: Path, info: RunInfo, tables: Tables) -> None:
    """RunError unless the weights fit the configuration, before memory is taken for either."""
    found, config = _shapes(path), path.with_name("config.json")
    layers = info.config.model.layers
    if layers > len(found):
        raise RunError(f"{path} does not fit {config}: it cannot hold {layers} layers")
    try:
        with torch.device("meta"):
            model = build_model(info.config.model, info.num_items, tables)
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


@torch.no_grad()
def _read_into(model: SequenceModel, path: Path) -> None:
    """Give a model the weights of a file, a few rows at a time: of a table that ranks share those
    that it has, and no others are read."""
    parts = model.parts
    with _weights_file(path), safe_open(path, "pt") as file:
        for name, weight in model.state_dict().items():
            if not weight.ndim:
                weight.copy_(file.get_tensor(name))
                continue
            first = parts[name].start if name in parts else 0
            stored = file.get_slice(name)
            rows = max(1, PIECE_BYTES // max(1, weight[:1].nbytes))
            for start in range(0, len(weight), rows):
                piece = weight[start : start + rows]
                piece.copy_(stored[first + start : first + start + len(piece)])


@contextlib.contextmanager
def _weights_file(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise RunError(f"{path} is missing: the run has no trained weights yet")
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is damaged: {error}") from error


def _write_description(run: Path, info: RunInfo, known: Known) -> None:
    """Write the tables, where they are not there, and ``config.json``."""
    if not _holds(open_vocabulary, run, info):
        known.items.save(run / "vocabulary")
    if known.features is not None and not _holds(open_item_table, run, info):
        known.features.save(run / FEATURES)
    if known.users is not None and not _holds(open_users, run, info):
        known.users[0].save(run / USERS)
        known.users[1].save(run / USERS / FEATURES)
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
        "users": info.users,
        "fields": info.fields.to_dict(),
        "ancestor": info.ancestor,
    }
    write_json(run / "config.json", values)


def _holds(opened: Callable[[Path, RunInfo], Any], run: Path, info: RunInfo) -> bool:
    """Whether a run has what is wanted of it already."""
    try:
        return opened(run, info) is not None
    except RunError:
        return False


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
        users=given("users", str) if values.get("users") is not None else None,
        fields=_fields(path, values.get("fields")),
        ancestor=given("ancestor", dict) if values.get("ancestor") is not None else None,
    )


def _fields(path: Path, values: Any) -> EventFields:
    # Runs of earlier versions see none.
    if values is None:
        return EventFields()
    try:
        return EventFields.from_dict(values, str(path))
    except DataError as error:
        raise RunError(str(error)) from error
