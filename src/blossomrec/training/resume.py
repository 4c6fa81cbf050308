"""May this training go on from what lies in its run folder?"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from blossomrec.config import RunConfig, flat, to_dict
from blossomrec.data.identity import differences
from blossomrec.data.log import EventLog
from blossomrec.data.split import Split
from blossomrec.errors import ConfigError, RunError
from blossomrec.run.description import bring_up_to_date, read_run_config
from blossomrec.training.checkpoint import Checkpoint, Checkpoints

Resume = Literal["auto", "never"]

# What may change between a run and its resumption: how long it goes on, and how it is carried out.
CHANGEABLE = frozenset(
    f"training.{name}"
    for name in (
        *("epochs", "minutes", "patience", "device", "devices", "graph"),
        *("checkpoint_overhead", "tracker", "track_model"),
    )
)


def identity(config: RunConfig, log: EventLog, split: Split) -> dict[str, Any]:
    """What a checkpoint must share with the training that resumes from it; JSON-ready."""
    return {
        "config": to_dict(config),
        "data": {
            **log.identity,
            "training events": int(np.sum(split.train_end)),
            "validation cases": len(split.valid.users),
        },
    }


def check_resume(resume: str) -> None:
    """Raise ConfigError unless ``resume`` is a choice there is."""
    if resume not in get_args(Resume):
        raise ConfigError(f"resume is {resume!r}: choose one of {', '.join(get_args(Resume))}")


def stored_options(run: Path) -> dict[str, Any]:
    """The whole configuration of a run that can be gone on with, nested; empty where there is none.

    Raises:
        RunError: ``config.json`` is damaged.
    """
    there = Checkpoints(run / "checkpoints").any() and (run / "config.json").exists()
    return to_dict(read_run_config(run).config) if there else {}


def begun_options(run: Path | None, ancestor: Path | None) -> dict[str, Any]:
    """As :func:`stored_options`; where there are none, those of the run that is brought up to date.

    Raises:
        RunError: a ``config.json`` is missing or damaged.
    """
    found = {} if run is None else stored_options(run)
    return to_dict(read_run_config(ancestor).config) if not found and ancestor else found


def find_checkpoint(
    run: Path, checkpoints: Checkpoints, resume: Resume, expected: dict[str, Any]
) -> Checkpoint | None:
    """The checkpoint to go on from, None for a fresh start.

    Raises:
        RunError: resume is "never" and there are checkpoints, all of them are damaged, or they
            come from other data.
        ConfigError: the run was begun with another configuration.
    """
    if resume == "never" and checkpoints.any():
        raise RunError(
            f"{checkpoints.folder} already holds checkpoints and resume is 'never': "
            "choose another run folder, or resume='auto' to go on"
        )
    checkpoint = checkpoints.newest()
    if checkpoint is not None:
        known = _identity_of(checkpoint)
        _check_data(run, known["data"], expected["data"])
        _check_config(run, known["config"], expected["config"])
    return checkpoint


def _identity_of(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    known = checkpoint.state.get("identity")
    if not isinstance(known, dict) or not all(
        isinstance(known.get(name), dict) for name in ("config", "data")
    ):
        raise RunError(f"{checkpoint.path} does not tell of which training it is: it is damaged")
    return known


def _check_data(run: Path, known: dict[str, Any], given: dict[str, Any]) -> None:
    differing = differences(known, given)
    if differing:
        raise RunError(
            f"{run} was trained on other data ({differing}): choose another run folder, or prepare "
            "the log as it was"
        )
    if "times" not in known:
        warnings.warn(
            f"{run} was begun before logs had an identity: that its log is still the same is known "
            "by the numbers of users and events alone",
            stacklevel=2,
        )


def _check_config(run: Path, known: dict[str, Any], given: dict[str, Any]) -> None:
    before = copy.deepcopy(known)
    bring_up_to_date(before)
    # An option that there was not then did what its default does.
    before, now = flat(to_dict(RunConfig())) | flat(before), flat(given)
    for name in sorted(before.keys() | now.keys()):
        if name not in CHANGEABLE and before.get(name) != now.get(name):
            raise ConfigError(
                f"{name} is {now.get(name)!r}, but {run} was begun with {before.get(name)!r}: "
                "resume with the same value or choose another run folder"
            )
