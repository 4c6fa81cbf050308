"""``config.json``: what it says of a run, and what files of earlier versions meant."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blossomrec.config import RunConfig, from_dict, rename_options
from blossomrec.data.fields import EventFields
from blossomrec.errors import (
    ConfigError,
    DataError,
    RunError,
    UnknownNameError,
    shortened,
    true_or_false,
)
from blossomrec.files import read_json

if TYPE_CHECKING:
    from blossomrec.data.log import EventLog

FORMAT = 2


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


def check_no_log(run: Path) -> None:
    """Raise RunError for a prepared log, which could not be prepared again with a run in it."""
    from blossomrec.data.log import LOG_FILE

    if (run / LOG_FILE).is_file():
        raise RunError(f"{run} is a prepared log: choose another folder for the run")


def check_vocabulary(run: Path, log: EventLog) -> None:
    """Raise RunError when ``run`` holds a configuration that belongs to another item vocabulary, or
    is a prepared log.
    """
    check_no_log(run)
    if not (run / "config.json").exists():
        return
    known, given = read_run_config(run).fingerprint, log.item_vocabulary.fingerprint
    if known != given:
        raise RunError(
            f"{run} belongs to another vocabulary: its items have the fingerprint {known}, "
            f"those of {log.folder} have {given}; choose another run folder"
        )


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
