"""What lies beside the model of a run: its items, and what tables say of items and users."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from blossomrec.data.features import FeatureTable
from blossomrec.data.fields import Tables
from blossomrec.data.log import FEATURES, USERS
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import DataError, RunError
from blossomrec.run.description import RunInfo


class Known(NamedTuple):
    """What is written beside a model: items, what a table says of them, and users with theirs."""

    items: Vocabulary
    features: FeatureTable | None
    users: tuple[Vocabulary, FeatureTable] | None

    @property
    def users_digest(self) -> str | None:
        return None if self.users is None else _users_digest(*self.users)


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


def _users_digest(vocabulary: Vocabulary, table: FeatureTable) -> str:
    text = f"{vocabulary.fingerprint} {vocabulary.size} {table.digest}"
    return hashlib.sha256(text.encode()).hexdigest()
