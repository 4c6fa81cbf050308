"""Weights and moments of a run, taken over into a model of another log."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from blossomrec.config import ModelConfig
from blossomrec.data.log import EventLog
from blossomrec.errors import ConfigError, RunError
from blossomrec.models.sequence import SequenceModel
from blossomrec.ranks import Ranks
from blossomrec.run.weights import load_model
from blossomrec.training import state as stored
from blossomrec.training.checkpoint import Checkpoints
from blossomrec.training.warm_start.new_items import Held, NewItems
from blossomrec.training.warm_start.tables import (
    Origin,
    item_tables,
    origins,
    scales,
    shifted,
)

# Options of a model that may be others than those of the run that is brought up to date.
FREE = ("max_len", "dropout", "id_dropout", "selector_weight", "attention_impl")

# What optimizers keep of every number, or of every row.
MOMENTS = ("exp_avg", "exp_avg_sq", "square_sum")


def check_architecture(given: ModelConfig, known: ModelConfig, run: Path) -> None:
    """Raise ConfigError, naming the option, unless both are the same model."""
    for entry in dataclasses.fields(ModelConfig):
        mine, theirs = getattr(given, entry.name), getattr(known, entry.name)
        if mine != theirs and entry.name not in FREE:
            raise ConfigError(
                f"model.{entry.name} is {mine!r}, but {run} has {theirs!r}: a model that is "
                "brought up to date keeps its architecture; leave the option away, or train anew"
            )


@dataclass(frozen=True)
class Taken:
    """What was taken over.

    Attributes:
        kept, new: items with the embedding that they had, and those without one.
        placed: of the new ones, how many begin by their events, by content alone, by neither.
        moments: state of the optimizer by parameter; empty where there was none.
    """

    kept: int
    new: int
    placed: tuple[int, int, int]
    moments: dict[str, dict[str, Tensor]]


def take_over(
    model: SequenceModel,
    run: Path,
    items: np.ndarray,
    log: EventLog,
    train_end: np.ndarray,
    checkpoints: Checkpoints,
) -> Taken:
    """Begin a model as the published weights of a run; an optimizer may begin with its moments.

    Args:
        model: of the same architecture, for the items and tables of ``log``.
        items: int64 [I], row of each item of the log in the run, -1 for one it does not know.
        train_end: int64 [U], how many of each user's first events may be trained on.
        checkpoints: of the run that begins. Where its ranks share the item table, ``model`` has the
            rows of this one, and no rank ever has all rows of either model.

    Raises:
        RunError: the run is damaged, or shares no item with the log.
        ConfigError: the run's model sees what the log does not have, or a parameter has another
            shape.
    """
    if not (items >= 0).any():
        raise RunError(f"{run} knows no item of {log.folder}: there is nothing to take over")
    ranks = checkpoints.ranks
    old = load_model(run, ranks=ranks)
    found = origins(model, old, items)
    weights = _weights(model, old, found, run, ranks)
    fresh = items < 0
    if model.content is not None:
        known = np.concatenate(ranks.gathered(old.trained.numpy()))
        trained = known[items.clip(min=0)] & ~fresh
        # Items that were known by their content alone have no embedding yet.
        fresh, held = ~trained, model.held_items
        own = torch.from_numpy(trained[held.start : held.stop])
        model.trained.logical_or_(own.to(model.trained.device))
        weights["item_embeddings.weight"][: len(held)] += shifted(model, old, old.state_dict())
    model.load_state_dict(model.state_dict() | weights)
    placed = _place(model, log, train_end, fresh, ranks) if fresh.any() else (0, 0, 0)
    moments = _moments(model, found, checkpoints.of_run(run, old))
    new = int((items < 0).sum())
    return Taken(len(items) - new, new, placed, moments)


def _weights(
    model: SequenceModel, old: SequenceModel, found: Mapping[str, Origin], run: Path, ranks: Ranks
) -> dict[str, Tensor]:
    """All parameters by name, as the other model has them."""
    theirs, factors, weights = dict(old.named_parameters()), scales(model, old), {}
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            weights[name] = _weight(name, parameter.cpu(), theirs, found.get(name), run, ranks)
            if name in factors:
                weights[name] *= factors[name]
    return weights


def _weight(
    name: str,
    like: Tensor,
    theirs: Mapping[str, Tensor],
    origin: Origin | None,
    run: Path,
    ranks: Ranks,
) -> Tensor:
    if origin is not None:
        weight, new = origin.taken(theirs, like, ranks), torch.from_numpy(origin.rows < 0)
        if origin.mean and new.any() and not new[1:].all():
            weight[new] = weight[1:][~new[1:]].mean(0)
        return weight
    if name not in theirs or theirs[name].shape != like.shape:
        shape = list(theirs[name].shape) if name in theirs else "none"
        raise ConfigError(
            f"model.max_len: with it {name} has the shape {list(like.shape)}, in {run} {shape}: "
            "take that of the run"
        )
    return theirs[name].clone()


@torch.no_grad()
def _place(
    model: SequenceModel, log: EventLog, train_end: np.ndarray, fresh: np.ndarray, ranks: Ranks
) -> tuple[int, int, int]:
    """Give new items their places, in all tables of items; says by what."""
    if fresh.all():
        # Of a model that knew all its items by their content alone.
        return 0, 0, 0
    content = None if model.content is None else model.content().cpu()
    new = NewItems.of(log, train_end, fresh, content, Held(ranks, model.held_items))
    parameters, first = dict(model.named_parameters()), model.held_items.start
    for name in item_tables(model):
        table, rows, known = parameters[name], new.fresh, new.known
        main = name == "item_embeddings.weight"
        if main:
            rows, known = (new.held.of(each) - first for each in (rows, known))
        there = table.cpu()[torch.from_numpy(known)]
        placed = new.embeddings(there) if main else new.usual(there)
        table[torch.from_numpy(rows).to(table.device)] = placed.to(table)
    return new.told


def _moments(
    model: SequenceModel, found: Mapping[str, Origin], checkpoints: Checkpoints
) -> dict[str, dict[str, Tensor]]:
    """The optimizer's state in the newest checkpoint, for the parameters of this model."""
    checkpoint = checkpoints.peek()
    if checkpoint is None:
        return {}
    known = stored.optimizer_state(checkpoint.tensors)
    states = {}
    for name, parameter in model.named_parameters():
        origin = found.get(name, Origin((name,), np.arange(len(parameter))))
        theirs = [known.get(each, {}) for each in origin.names]
        keys = [key for key in MOMENTS if theirs and all(key in each for each in theirs)]
        if not keys:
            continue
        # Row-wise AdaGrad keeps a number of each row.
        known_of = [theirs[0][key] for key in keys]
        fits = all(each.shape == parameter.shape[: each.ndim] for each in known_of)
        if name not in found and not fits:
            continue
        step = max(each["step"] for each in theirs)
        states[name] = {"step": step.clone()} | {
            key: origin.taken(
                {each: known[each][key] for each in origin.names},
                torch.zeros(parameter.shape[: theirs[0][key].ndim]),
                checkpoints.ranks,
            )
            for key in keys
        }
    return states
