"""Where the rows of a model's tables come from in another model: by id, name or bucket.

A kind, a category or a bucket has another row where a vocabulary was made anew; here each row has a
label, and rows with the same label stand for the same thing.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor

from blossomrec.data.features import Categories, Feature, Numbers, Titles, Vectors
from blossomrec.data.fields import ContextField
from blossomrec.errors import ConfigError
from blossomrec.models.event_inputs import FEW, GAP_BUCKETS, HOURS, WEEKDAYS, EventInputs
from blossomrec.models.features import scale_of
from blossomrec.models.own_history.mixture import Scale
from blossomrec.models.sequence import SequenceModel
from blossomrec.models.shard import without_numbers
from blossomrec.ranks import ALONE, Ranks
from blossomrec.registry import BACKBONES

Label = tuple[Hashable, ...]
# The tables of an option, in which columns are looked for.
OPTIONS = {"context": "model.context", "item": "model.content", "user": "model.user_table"}


@dataclass(frozen=True)
class Origin:
    """Of what a parameter is made.

    Attributes:
        names: parameters of the other model, one below the other.
        rows: int64 [n], row there of each row here, -1 for none: it begins at zero.
        columns: the same of the second dimension; None where both have the same.
        mean: whether rows without an origin begin at the mean of all others but the first.
        total: rows of the other model's parameter, where ranks have parts of both; ``rows`` are
            then those of the rows that this rank has.
    """

    names: tuple[str, ...]
    rows: np.ndarray
    columns: np.ndarray | None = None
    mean: bool = False
    total: int | None = None

    def taken(self, tensors: Mapping[str, Tensor], like: Tensor, ranks: Ranks = ALONE) -> Tensor:
        """Of something of each parameter of the other model, that of this one; ``like`` it."""
        found = torch.zeros_like(like)
        there = torch.from_numpy(np.flatnonzero(self.rows >= 0))
        if self.total is not None:
            (name,) = self.names
            rows = torch.from_numpy(self.rows)[there]
            found[there] = ranks.fetch(tensors[name].to(like), self.total, rows)
        elif len(there):
            parts = [tensors[name] for name in self.names]
            source = (parts[0] if len(parts) == 1 else torch.cat(parts)).to(like)
            if self.columns is None and self._begins_alike:
                # Known rows stay where they are as a log grows.
                found[: len(there)] = source[: len(there)]
                return found
            source = source[torch.from_numpy(self.rows)[there]]
            found[there] = source if self.columns is None else source[:, self.columns]
        return found

    @cached_property
    def _begins_alike(self) -> bool:
        """Whether the first rows are those of the other model, in their order, and others new."""
        known = int((self.rows >= 0).sum())
        return bool((self.rows[:known] == np.arange(known)).all())


@dataclass
class _Labels:
    """The rows of the tables that add up to one sum, by label: parameter and labels of its rows."""

    of: dict[str, list[Label]] = field(default_factory=dict)

    def origins(self, other: _Labels) -> dict[str, Origin]:
        """Of each table here; a new name in a column that is there begins as an unknown one."""
        names, known = tuple(other.of), dict[Label, int]()
        for labels in other.of.values():
            known |= {label: len(known) + n for n, label in enumerate(labels)}

        def row(label: Label) -> int:
            return known.get(label, known.get((*label[:-1], None), -1))

        return {
            name: Origin(names, np.array([row(label) for label in labels], np.int64))
            for name, labels in self.of.items()
        }


def origins(new: SequenceModel, old: SequenceModel, items: np.ndarray) -> dict[str, Origin]:
    """Of each parameter whose rows do not simply stand where they stood.

    Args:
        items: int64 [I], row of each item in the other model, -1 for a new one.

    Raises:
        ConfigError: a column that the other model sees is missing, or is of another kind.
    """
    _check_columns(new, old)
    found = _item_tables(new, old, items)
    for mine, theirs in zip(_label_groups(new), _label_groups(old), strict=True):
        found |= mine.origins(theirs)
    return found | _content(new, old) | _own_history(new, old)


def item_tables(model: SequenceModel) -> list[str]:
    """Parameters with a row for each item: those that a larger catalogue would make longer."""
    build, shapes = BACKBONES.get(model.config.backbone), []
    with without_numbers():
        for more in (0, 1):
            bare = build(model.config, model.num_items + more)
            shapes.append({name: one.shape for name, one in bare.named_parameters()})
    one, other = shapes
    return [name for name in one if one[name][:1] != other[name][:1]]


def _item_tables(new: SequenceModel, old: SequenceModel, items: np.ndarray) -> dict[str, Origin]:
    found, parameters = {}, dict(new.named_parameters())
    for name in item_tables(new):
        held = new.parts.get(name)
        total = len(parameters[name]) if held is None else new.num_items + new.extra_rows
        # Rows beyond the catalogue, such as that of a mask, stand behind it.
        rows = np.concatenate([items, np.arange(total - new.num_items) + old.num_items])
        if held is None:
            found[name] = Origin((name,), rows)
            continue
        whole = old.num_items + old.extra_rows
        found[name] = Origin((name,), rows[held.start : held.stop], total=whole)
    return found


def _label_groups(model: SequenceModel) -> tuple[_Labels, _Labels]:
    """Tables of what is seen of events and users, and of what is asked."""
    seen, asked, users = _Labels(), _Labels(), dict(model.users or {})
    if model.event_inputs is not None:
        context, inputs = model.fields.context, model.event_inputs
        seen.of["event_inputs.embeddings.weight"] = [
            *_moments(inputs, model),
            *(label for one in context if one.size <= FEW for label in _names("context", one)),
            *(("context", one.name) for one in context if one.kind == "number"),
            *(_user_columns(users) if model.user_content is not None else []),
        ]
        many = [one for one in context if one.size > FEW]
        for n, one in enumerate(many):
            seen.of[f"event_inputs.of_many.{n}.weight"] = _names("context", one)
    if model.user_content is not None:
        for n, (name, one) in enumerate(_categories(users, many=True)):
            seen.of[f"user_content.of_many.{n}.bag.weight"] = _categories_of("user", name, one)
    if model.request_inputs is not None:
        labels = _moments(model.request_inputs, model)
        asked.of["request_inputs.embeddings.weight"] = labels
    return seen, asked


def _moments(inputs: EventInputs, model: SequenceModel) -> list[Label]:
    kinds: list[Label] = [("kind", name) for name in (None, *model.fields.kinds)]
    return [
        *(("gap", n, 0) for n in range(GAP_BUCKETS if inputs.gap else 0)),
        *(("clock", n, 0) for n in range(HOURS + WEEKDAYS if inputs.clock else 0)),
        *(kinds if inputs.kinds is not None else []),
    ]


def _names(where: str, column: ContextField) -> list[Label]:
    names = (None, *column.names) if column.kind == "category" else ()
    return [(where, column.name, name) for name in names]


def _user_columns(users: Mapping[str, Feature]) -> list[Label]:
    """Labels of the columns of ``UserContent``."""
    few = [
        label
        for name, one in _categories(users, many=False)
        for label in _categories_of("user", name, one)
    ]
    numbers = [
        ("user", name, n, "number")
        for name, one in users.items()
        if isinstance(one, (Numbers, Vectors))
        for n in range(_width(one))
    ]
    return [*few, *numbers, ("user", "stranger", 0)]


def _categories(features: Mapping[str, Feature], *, many: bool) -> list[tuple[str, Categories]]:
    return [
        (name, one)
        for name, one in features.items()
        if isinstance(one, Categories) and (one.size > FEW) == many
    ]


def _categories_of(where: str, name: str, column: Categories) -> list[Label]:
    return [(where, name, each) for each in (None, *column.names.all())]


def _width(feature: Numbers | Vectors) -> int:
    return 1 if feature.values.ndim == 1 else feature.values.shape[1]


def _content(new: SequenceModel, old: SequenceModel) -> dict[str, Origin]:
    """Tables of what is known of items; a new category begins at the mean of the others."""
    found, theirs = {}, _numbered(old)
    for name, (number, one) in _numbered(new).items():
        weight = _content_weight(number, one)
        before, other = theirs.get(name, (0, None))
        if other is None:
            rows = one.size if isinstance(one, Categories) else new.config.hidden_size
            found[weight] = Origin((), np.full(rows, -1))
        elif isinstance(one, Categories) and isinstance(other, Categories):
            labels = _Labels({weight: _categories_of("item", name, one)})
            known = {each: n for n, each in enumerate(_categories_of("item", name, other))}
            rows = np.array([known.get(label, -1) for label in labels.of[weight]], np.int64)
            found[weight] = Origin((_content_weight(before, other),), rows, mean=True)
        else:
            rows = np.arange(new.config.hidden_size)
            found[weight] = Origin((_content_weight(before, other),), rows)
    return found


def _numbered(model: SequenceModel) -> dict[str, tuple[int, Feature]]:
    """Columns of the table of items that a model sees, with the number of their module."""
    found, counts = {}, {"categories": 0, "numbers": 0}
    for name, one in (model.features or {}).items():
        if not isinstance(one, Titles):
            part = "categories" if isinstance(one, Categories) else "numbers"
            found[name] = (counts[part], one)
            counts[part] += 1
    return found


def _content_weight(number: int, column: Feature) -> str:
    if isinstance(column, Categories):
        return f"content.categories.{number}.bag.weight"
    return f"content.numbers.{number}.project.weight"


def _own_history(new: SequenceModel, old: SequenceModel) -> dict[str, Origin]:
    """Buckets of gaps; those of longer histories begin as the longest there was."""
    if new.own_history is None or old.own_history is None:
        return {}
    found, of_state, start = {}, [], 0
    for n, (mine, theirs) in enumerate(
        zip(new.own_history.scales, old.own_history.scales, strict=True)
    ):
        known, starts = (cast(Scale, one).starts.cpu().numpy() for one in (theirs, mine))
        rows = np.searchsorted(known, starts, side="right") - 1
        for name in ("of_item", "of_counts"):
            weight = f"own_history.scales.{n}.{name}.weight"
            found[weight] = Origin((weight,), rows)
        weight = f"own_history.scales.{n}.of_gap.weight"
        # The last one is for no gap.
        found[weight] = Origin((weight,), np.append(rows, len(known)), columns=rows)
        of_state.append(rows + start)
        start += len(known)
    for name in ("own_history.of_state.weight", "own_history.of_state.bias"):
        found[name] = Origin((name,), np.concatenate(of_state))
    return found


def _check_columns(new: SequenceModel, old: SequenceModel) -> None:
    """Raise ConfigError unless what the other model sees is there, and of the same kind."""
    mine, theirs = _columns(new), _columns(old)
    for (table, name), kind in theirs.items():
        found = mine.get((table, name), "missing")
        if found != kind:
            raise ConfigError(
                f"{OPTIONS[table]}: the column {name!r} is {found} in this log, and the model that "
                f"is to be brought up to date sees it as {kind}: prepare the log as it was, or "
                "train anew"
            )


def _columns(model: SequenceModel) -> dict[tuple[str, str], str]:
    found = {("context", one.name): f"a {one.kind}" for one in model.fields.context}
    for table, features in (("item", model.features), ("user", model.users)):
        for name, one in (features or {}).items():
            if not isinstance(one, Titles):
                size = f" of {_width(one)} numbers" if isinstance(one, Vectors) else ""
                found[table, name] = f"a {one.kind}{size}"
    return found


def scales(new: SequenceModel, old: SequenceModel) -> dict[str, Tensor]:
    """By what weights of numbers are multiplied, since each table has a scale of its own."""
    found = dict[str, Tensor]()
    theirs = _numbered(old)
    for name, (number, one) in _numbered(new).items():
        if not isinstance(one, Categories) and name in theirs:
            ratio = scale_of(one)[1] / scale_of(theirs[name][1])[1]
            found[_content_weight(number, one)] = torch.tensor(ratio)
    if new.user_content is not None:
        users, others = dict(new.users or {}), dict(old.users or {})
        labels = _label_groups(new)[0].of["event_inputs.embeddings.weight"]
        factors = torch.ones(len(labels), 1)
        for row, label in enumerate(labels):
            # Names of categories stand third: only numbers have a fourth part.
            if label[0] == "user" and len(label) == 4 and label[1] in others:
                name = cast(str, label[1])
                factors[row] = scale_of(users[name])[1] / scale_of(others[name])[1]
        found["event_inputs.embeddings.weight"] = factors
    return found


def shifted(new: SequenceModel, old: SequenceModel, weights: Mapping[str, Tensor]) -> Tensor:
    """What the items of this rank lack since the means of their numbers are others now, [I, D].

    Args:
        weights: of the other model.
    """
    held = new.held_items
    found = torch.zeros(len(held), new.config.hidden_size)
    theirs = _numbered(old)
    for name, (_, one) in _numbered(new).items():
        number, other = theirs.get(name, (0, None))
        if isinstance(one, Numbers) and isinstance(other, Numbers):
            (mean, _), (before, deviation) = scale_of(one), scale_of(other)
            known = torch.from_numpy(~np.isnan(one.values[held.start : held.stop]))
            weight = weights[_content_weight(number, other)][:, 0]
            found += known[:, None] * (weight * ((mean - before) / deviation))
    return found
