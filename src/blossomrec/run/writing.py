"""Writing a run folder: as a training begins, as a model without its log, and what was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from blossomrec import __version__
from blossomrec.config import RunConfig, to_dict
from blossomrec.data.features import FeatureTable, Vectors
from blossomrec.data.fields import EventFields
from blossomrec.data.log import FEATURES, USERS, EventLog
from blossomrec.errors import RunError
from blossomrec.evaluation import resolve_filter_seen
from blossomrec.files import flush, read_json, remove, write_json
from blossomrec.models.inputs import seen_fields
from blossomrec.models.sequence import SequenceModel
from blossomrec.run import OF_TRAINING
from blossomrec.run.description import (
    FORMAT,
    RunInfo,
    check_no_log,
    check_vocabulary,
    read_run_config,
)
from blossomrec.run.tables import Known, open_item_table, open_users, open_vocabulary
from blossomrec.run.weights import save_model


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
        RunError: it is a prepared log; or a training, evaluations or a ``config.json`` that is
            none of a run lie there, and ``overwrite``, which removes them, is not given.
    """
    folder = Path(folder)
    trained = [name for name in OF_TRAINING if (folder / name).exists()]
    if trained and not overwrite:
        raise RunError(
            f"{folder} is the run folder of another model (it holds {', '.join(trained)}): choose "
            "another folder, or give overwrite=True, which removes those"
        )
    check_no_log(folder)
    if (folder / "config.json").exists() and not overwrite:
        read_run_config(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove(folder / "config.json")
    flush(folder)
    for name in trained:
        remove(folder / name)
    save_model(folder, model)
    _write_description(folder, info, known)


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


def _without_vectors(table: FeatureTable | None) -> FeatureTable | None:
    """What rules read of a table of items, where the model sees none of it."""
    if table is None:
        return None
    kept = {name: each for name, each in table.items() if not isinstance(each, Vectors)}
    return FeatureTable(kept, table.num_rows) if kept else None
