"""What an export says of itself, ``export.json``: all that another engine needs to serve it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch

from blossomrec import __version__
from blossomrec.data.vocabulary import Vocabulary
from blossomrec.exporting.encoder import input_names
from blossomrec.files import write_json
from blossomrec.models.sequence import SequenceModel

FORMAT = 1
DESCRIPTION, ITEMS, USERS = "export.json", "items.parquet", "users.parquet"


@dataclass(frozen=True)
class Port:
    """A tensor that goes into a graph or comes out of it.

    Attributes:
        name: of the input or output.
        dtype: "int64" or "float32".
        shape: numbers, and names of sizes that may be any from 1.
        meaning: what it is, in a sentence.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str

    def example(self, sizes: dict[str, int]) -> torch.Tensor:
        """Zeros of these sizes."""
        shape = [each if isinstance(each, int) else sizes[each] for each in self.shape]
        return torch.zeros(shape, dtype=getattr(torch, self.dtype))


def encoder_ports(model: SequenceModel) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of the encoder of a model."""
    events, histories = ("batch", "length"), ("batch",)
    columns = len(model.fields.context)
    second = "seconds since 1970, -1 where it is not known"
    known = {
        "items": Port(
            "items",
            "int64",
            events,
            f"rows of {ITEMS}, oldest event first; any row fills a history up at its end",
        ),
        "lengths": Port("lengths", "int64", histories, "events of each history, at least 1"),
        "times": Port("times", "int64", events, f"times of the events, {second}"),
        "asked": Port(
            "asked", "int64", histories, f"the moment for which is recommended, {second}"
        ),
        "kinds": Port(
            "kinds", "int64", events, "kinds of the events: places in fields.kinds from 1, 0 none"
        ),
        "asked_kinds": Port(
            "asked_kinds", "int64", histories, "the wanted kind: a place in fields.kinds, 0 for any"
        ),
        "context": Port(
            "context",
            "float32",
            (*events, columns),
            "columns as in fields.context: numbers as they are, names as places from 1, 0 for an "
            "unknown one, NaN for none",
        ),
        "users": Port(
            "users", "int64", histories, f"rows of {USERS}, -1 for users who are not in it"
        ),
    }
    size = model.config.hidden_size
    meaning = "what the items are scored from, at the last event of each history"
    outputs = [Port("vectors", "float32", ("batch", size), meaning)]
    return [known[name] for name in input_names(model)], outputs


def ranking_ports(model: SequenceModel, k: int) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of the ranking of a model's catalogue."""
    size = model.config.hidden_size
    inputs = [
        Port("vectors", "float32", ("batch", size), "as the encoder gives them"),
        Port("left_out", "int64", ("batch", "count"), "rows that are not ranked, -1 for none"),
    ]
    outputs = [
        Port("items", "int64", ("batch", k), f"rows of {ITEMS}, the best first"),
        Port("scores", "float32", ("batch", k), "of those; -inf where no item is left"),
    ]
    return inputs, outputs


def about(model: SequenceModel, run: str | None, filter_viewed: bool | None) -> dict[str, Any]:
    """What is the same for all kinds of exports.

    Args:
        run: version of the run.
        filter_viewed: whether recommendations leave out what is in the history.
    """
    return {
        "format": FORMAT,
        "blossomrec": __version__,
        "run": run,
        "num_items": model.num_items,
        "hidden_size": model.config.hidden_size,
        "filter_viewed": filter_viewed,
    }


def described(file: str, inputs: Iterable[Port], outputs: Iterable[Port]) -> dict[str, Any]:
    """A graph and its tensors."""
    return {
        "file": file,
        "inputs": [asdict(each) for each in inputs],
        "outputs": [asdict(each) for each in outputs],
    }


def write_description(folder: Path, values: dict[str, Any]) -> None:
    """Write ``export.json``."""
    write_json(folder / DESCRIPTION, values)


def write_ids(path: Path, vocabulary: Vocabulary) -> None:
    """Write external ids in the order of their rows, a column ``id``."""
    pl.DataFrame({"id": vocabulary.read()}).write_parquet(path)
