"""What tables say of items and users, as a model sees it: vectors of items, columns of users."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from blossomrec.data.features import Categories, Feature, Numbers, Vectors
from blossomrec.models.event_inputs import FEW, is_few
from blossomrec.models.fused.embedding import embedding, embedding_bag

WHOLE = slice(None)


class UserContent(nn.Module):
    """What a table says of users: columns for ``EventInputs``, and vectors for the rest.

    Zeros and ones for categories, scaled numbers and vectors, and a last column for users who are
    not known. Categories of very many names have embeddings of their own.

    Args:
        features: by name.
        size: D.
        may_fuse: whether a kernel may run where a GPU takes it.

    Attributes:
        width: number of columns, U.
    """

    numbers: Tensor

    def __init__(self, features: Mapping[str, Feature], size: int, *, may_fuse: bool = True):
        super().__init__()
        categories = [one for one in features.values() if isinstance(one, Categories)]
        numbers = [one for one in features.values() if isinstance(one, (Numbers, Vectors))]
        few = [one for one in categories if one.size <= FEW]
        many = [one for one in categories if one.size > FEW]
        self.lists = nn.ModuleList(_Lists(one) for one in few)
        self.of_many = nn.ModuleList(_Categories(one, size, 0.0, may_fuse=may_fuse) for one in many)
        scaled = [_scaled(one) for one in numbers]
        rows = len(next(iter(features.values())))
        _keep(self, numbers=np.concatenate([np.empty((rows, 0), np.float32), *scaled], 1))
        sizes = [one.size for one in few]
        self.starts = list(accumulate(sizes, initial=0))
        self.width = self.starts[-1] + self.numbers.shape[1] + 1

    def forward(self, rows: Tensor) -> Tensor:
        """Columns of rows of the table, int64 [B], negative for an unknown user: [B, U]."""
        if is_few(rows):
            return torch.from_numpy(self._singly(rows.tolist()))
        known = rows >= 0
        rows, end = rows.clamp(min=0), self.starts[-1]
        # One column more takes what lists are filled up with.
        found = self.numbers.new_zeros(len(rows), end + 1)
        for start, lists in zip(self.starts[:-1], self.lists, strict=True):
            values, there = lists(rows)
            found.scatter_(1, torch.where(there, values + start, end), 1.0)
        there = torch.cat((found[:, :end], self.numbers[rows]), 1) * known[:, None]
        return torch.cat((there, ~known[:, None]), 1)

    def _singly(self, rows: list[int]) -> np.ndarray:
        """As :meth:`forward`, of a few users on a CPU."""
        found = np.zeros((len(rows), self.width), np.float32)
        for columns, row in zip(found, rows, strict=True):
            if row < 0:
                columns[-1] = 1.0
                continue
            for start, lists in zip(self.starts[:-1], self.lists, strict=True):
                columns[start + cast(_Lists, lists).of(row)] = 1.0
            columns[self.starts[-1] : -1] = self.numbers.numpy()[row]
        return found

    def vectors(self, rows: Tensor) -> Tensor:
        """The sum of the embeddings of categories of very many names, [B, D]; there are some."""
        known, rows = (rows >= 0)[:, None], rows.clamp(min=0)
        return torch.stack([part(rows) for part in self.of_many]).sum(0) * known


class Content(nn.Module):
    """The sum of what a table of features says of each row: [R, D].

    Embeddings of categories are added up, several of a row too; numbers are brought to mean 0 and
    deviation 1, vectors to mean length 1, and both projected. What is missing adds nothing, but for
    an unknown category, which has an embedding of its own. Titles are for people.

    Args:
        features: by name; their arrays become buffers, which are saved with the table.
        size: D.
        rows: which of the table's it has; all without.
        may_fuse: whether a kernel may run where a GPU takes it.
    """

    def __init__(
        self,
        features: Mapping[str, Feature],
        size: int,
        rows: range | None = None,
        *,
        may_fuse: bool = True,
    ):
        super().__init__()
        held = WHOLE if rows is None else slice(rows.start, rows.stop)
        self.categories = nn.ModuleList(
            _Categories(one, size, rows=held, may_fuse=may_fuse)
            for one in features.values()
            if isinstance(one, Categories)
        )
        self.numbers = nn.ModuleList(
            _Projected(one, size, held)
            for one in features.values()
            if isinstance(one, (Numbers, Vectors))
        )

    def forward(self) -> Tensor:
        """Vectors of all rows that it has, [R, D]."""
        return torch.stack([part() for part in (*self.categories, *self.numbers)]).sum(0)


class _Lists(nn.Module):
    """The numbers of each row's categories, filled up to one length."""

    values: Tensor
    offsets: Tensor

    def __init__(self, feature: Categories, rows: slice = WHOLE):
        super().__init__()
        first, stop, _ = rows.indices(len(feature))
        offsets = feature.offsets[first : stop + 1]
        values = feature.values[offsets[0] : offsets[-1]].astype(np.int64)
        _keep(self, values=values, offsets=offsets - offsets[0])
        self.longest = int(np.diff(offsets).max(initial=1))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of rows, and whether they are any: int64 and bool [B, longest]."""
        # One shape whatever the rows are, so that a step can be captured.
        index = self.offsets[rows][:, None] + torch.arange(self.longest, device=rows.device)
        there = index < self.offsets[rows + 1][:, None]
        return self.values[index.clamp(max=len(self.values) - 1)], there

    def of(self, row: int) -> np.ndarray:
        """Numbers of one row, on a CPU."""
        start, end = self.offsets.numpy()[row : row + 2]
        return self.values.numpy()[start:end]


class _Categories(nn.Module):
    """The sum of the embeddings of each row's categories."""

    def __init__(
        self,
        feature: Categories,
        size: int,
        std: float = 0.02,
        rows: slice = WHOLE,
        *,
        may_fuse: bool,
    ):
        super().__init__()
        self.may_fuse = may_fuse
        self.bag = nn.EmbeddingBag(feature.size, size, mode="sum", include_last_offset=True)
        nn.init.normal_(self.bag.weight, std=std)
        self.lists = _Lists(feature, rows)

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """Of some rows, int64 [B], or of all, [R, D]."""
        if rows is None:
            lists = self.lists.values, self.lists.offsets
            return embedding_bag(*lists, self.bag.weight, may_fuse=self.may_fuse)
        values, there = self.lists(rows)
        found = embedding(values, self.bag.weight, may_fuse=self.may_fuse)
        return (found * there[:, :, None]).sum(1)


class _Projected(nn.Module):
    """Each row's number or vector, scaled and projected, [R, D]."""

    values: Tensor

    def __init__(self, feature: Numbers | Vectors, size: int, rows: slice):
        super().__init__()
        values = _scaled(feature, rows)
        self.project = nn.Linear(values.shape[1], size, bias=False)
        nn.init.normal_(self.project.weight, std=0.02)
        _keep(self, values=values)

    def forward(self) -> Tensor:
        return self.project(self.values)


def _keep(module: nn.Module, **arrays: np.ndarray) -> None:
    """Arrays of a table as buffers; they are saved with the table, not with the weights."""
    for name, array in arrays.items():
        tensor = torch.from_numpy(np.array(array))
        module.register_buffer(name, tensor, persistent=False)


def scale_of(feature: Feature) -> tuple[float, float]:
    """What is taken from numbers, and what they are then divided by; the mean length of vectors.

    Raises:
        TypeError: they are no numbers.
    """
    if isinstance(feature, Numbers):
        values = np.asarray(feature.values, np.float64)
        there = values[~np.isnan(values)] if not np.isnan(values).all() else np.zeros(1)
        return float(there.mean()), float(there.std() or 1.0)
    if not isinstance(feature, Vectors):
        raise TypeError(f"a {feature.kind} has no scale")
    values = np.asarray(feature.values)
    known = np.asarray(np.isfinite(values).all(axis=1))
    length = np.linalg.norm(values[known], axis=1).mean() if known.any() else 1.0
    return 0.0, float(length or 1.0)


def _scaled(feature: Numbers | Vectors, rows: slice = WHOLE) -> np.ndarray:
    """Numbers [R, 1] or vectors [R, d] of a common size, float32; 0 where they are missing.

    rows: those that are wanted, by the scale of all.
    """
    mean, scale = scale_of(feature)
    if isinstance(feature, Numbers):
        values = np.asarray(feature.values[rows], np.float64)
        return np.where(np.isnan(values), 0.0, (values - mean) / scale)[:, None].astype(np.float32)
    values = np.asarray(feature.values[rows])
    known = np.asarray(np.isfinite(values).all(axis=1))
    # In 32 bits, as the vectors are.
    scaled = np.nan_to_num(values, nan=0.0) / np.float32(scale)
    return np.where(known[:, None], scaled, 0.0).astype(np.float32)
