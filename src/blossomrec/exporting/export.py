"""The folder of an export: made whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blossomrec.data.vocabulary import Vocabulary
from blossomrec.errors import ConfigError, DataError, RunError, one_of, whole_number
from blossomrec.exporting.description import USERS, about, write_description
from blossomrec.exporting.graphs import refuse_unsupported, write_graphs
from blossomrec.exporting.vectors import refuse_other_scores, write_rows, write_vectors
from blossomrec.files import new_folder
from blossomrec.models.sequence import SequenceModel

KINDS = ("onnx", "torch", "vectors")
# Items that a ranking gives unless it is told how many.
RANKED = 100


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        model: in evaluation mode.
        items: vocabulary of its catalogue.
        users: of the table of users that it sees; None where it sees none.
        run: version of the run; None where there is no folder of it any more.
        filter_viewed: whether recommendations leave out what is in the history.
    """

    model: SequenceModel
    items: Vocabulary
    users: Vocabulary | None
    run: str | None
    filter_viewed: bool | None


@dataclass(frozen=True)
class Wanted:
    """What of it, and as what.

    Attributes:
        to: one of ``KINDS``.
        k: items that a ranking gives; None for 100, or all of fewer.
        index: of the vectors of items, as faiss names it.
        users: ids and vectors of users, some at a time.
    """

    to: str
    k: int | None = None
    index: str | None = None
    users: Iterator[tuple[list[int | str], np.ndarray]] | None = None

    def check(self, num_items: int) -> None:
        """Raise ConfigError where something is wrong, or is not for this kind of export."""
        one_of("to", self.to, KINDS)
        if self.to == "vectors" and self.k is not None:
            raise ConfigError(f"k is {self.k}: it is for --to onnx and --to torch")
        if self.to != "vectors" and (self.index is not None or self.users is not None):
            raise ConfigError(f"to is {self.to!r}: users and index are for --to vectors")
        if self.k is not None and whole_number("k", self.k) > num_items:
            raise ConfigError(f"k is {self.k}: the model knows {num_items} items")


def write_export(out: str | Path, source: Source, wanted: Wanted) -> dict[str, Any]:
    """Write a folder.

    Returns:
        What its ``export.json`` says.

    Raises:
        RunError: something lies at ``out``.
        ConfigError: the model cannot be exported so, or an option is wrong.
        DataError: no user has a vector.
        MissingExtraError: what is needed is not installed.
    """
    model = source.model
    wanted.check(model.num_items)
    path = _free_place(Path(out))
    if wanted.to == "vectors":
        refuse_other_scores(model)
    else:
        refuse_unsupported(model, wanted.to)
    told = about(model, source.run, source.filter_viewed)
    with new_folder(path) as folder:
        if wanted.to == "vectors":
            told |= write_vectors(folder, model, source.items, wanted.index)
            if wanted.users is not None:
                count = write_rows(folder / USERS, wanted.users)
                if not count:
                    raise DataError("no user has an event of an item that the model knows")
                told |= {"users": USERS, "num_users": count}
        else:
            k = min(RANKED, model.num_items) if wanted.k is None else wanted.k
            told |= write_graphs(folder, wanted.to, model, k, source.items, source.users)
        write_description(folder, told)
    return told


def _free_place(out: Path) -> Path:
    """The folder that is meant, without links or dots in its path.

    Raises:
        RunError: something is there, or the folder would be replaced under the feet of the caller.
    """
    path = out.resolve()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunError(f"{out} is there: choose another folder, or remove it")
    if path == Path.cwd():
        raise RunError(f"{out} is the folder you are in: name one that is to be made, such as out")
    return path
