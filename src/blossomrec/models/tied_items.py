"""Items of a sequence model, tied at input and output: their vectors, and scores by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from blossomrec.config import ModelConfig
from blossomrec.models import fused
from blossomrec.models.features import Content
from blossomrec.models.fused.quantised_items import KeptCopy
from blossomrec.models.inputs import needed_table
from blossomrec.models.shard import held_rows, start_table

if TYPE_CHECKING:
    import numpy as np

    from blossomrec.data.features import FeatureTable


class TiedItems(nn.Module):
    """Base of a sequence model: the table of item embeddings, and how a catalogue is scored.

    Args:
        config: the architecture.
        num_items: size of the catalogue, I.
        extra_rows: embeddings besides the catalogue's, from row I on.

    Attributes:
        held: rows of the item table that it has: all, unless ranks share them.
        content: what the table of items says of them; None where the model sees none.
        trained: which items have a training event, bool [I]; there with content alone.
        quantised: the copy of its vectors by which processors rank.
    """

    trained: Tensor

    def __init__(self, config: ModelConfig, num_items: int, *, extra_rows: int = 0):
        super().__init__()
        self.config, self.num_items, self.extra_rows = config, num_items, extra_rows
        self.held = held_rows(num_items + extra_rows)
        self.item_embeddings = start_table(num_items + extra_rows, config.hidden_size)
        self.content: Content | None = None
        self._vectors: Tensor | None = None
        self._rows: Tensor | None = None
        self.quantised = KeptCopy()

    def attach_content(self, table: FeatureTable | None) -> None:
        """Add what a table says of the items, one row for each, to their vectors.

        Raises:
            ConfigError: there is none, or one of another catalogue.
        """
        table = needed_table("content", table, self.num_items)
        size, fuses = self.config.hidden_size, self.may_fuse
        self.content = Content(table, size, self.held_items, may_fuse=fuses)
        self.register_buffer("trained", torch.ones(len(self.held_items), dtype=torch.bool))

    @property
    def held_items(self) -> range:
        """Items of the catalogue among the rows that it has."""
        return range(self.held.start, min(self.held.stop, self.num_items))

    @property
    def first_extra(self) -> int:
        """Row of the first embedding behind the catalogue, as events name it now."""
        rows = self.num_items + self.extra_rows if self._rows is None else len(self._rows)
        return rows - self.extra_rows

    @property
    def parts(self) -> dict[str, range]:
        """Of those tensors of its state that ranks share, which rows of the whole it has."""
        shared = {"item_embeddings.weight": self.held, "trained": self.held_items}
        return {name: rows for name, rows in shared.items() if name in self.state_dict()}

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained, those of other ranks included."""
        there = sum(one.numel() for one in self.parameters())
        others = self.num_items + self.extra_rows - len(self.held)
        return there + others * self.config.hidden_size

    @property
    def may_fuse(self) -> bool:
        """Whether kernels may run for this model and its loss, where a GPU takes them."""
        return fused.allowed(self.config)

    def mark_trained(self, items: np.ndarray) -> None:
        """Tell which items have a training event, bool [I]; with content it makes a difference."""
        if self.content is not None:
            held = self.held_items
            self.trained.copy_(torch.from_numpy(items[held.start : held.stop]))

    def item_vectors(self) -> Tensor:
        """What items are at input and output, [I, D], and what rows besides them are, from row I.

        Where ranks share the table, those of the rows that this one has.
        Embeddings of their ids and, with content, what the table says of them. In training a share
        of the items, drawn anew with each call, goes without the embedding of its id, so that the
        rest learns to stand alone; items without a training event always do.
        """
        if self._rows is not None:
            return self._rows
        weight = self.item_embeddings.weight
        if self.content is None:
            return weight
        kept = not self.training and not torch.is_grad_enabled()
        if kept and self._vectors is not None:
            return self._vectors
        ids = self.trained
        if self.training:
            draws = torch.rand(len(ids), device=weight.device)
            ids = ids & (draws >= self.config.id_dropout)
        items = weight[: len(ids)] * ids[:, None] + self.content()
        vectors = torch.cat((items, weight[len(ids) :])) if self.extra_rows else items
        if kept:
            self._vectors = vectors
        return vectors

    @contextmanager
    def on_rows(self, vectors: Tensor) -> Iterator[None]:
        """Within, ``vectors`` [K, D] are all items that there are, and events name rows of them.

        For a step that needs no other items, and vectors with the content in them. Where rows
        behind the catalogue are needed, they stand last.
        """
        self._rows = vectors
        try:
            yield
        finally:
            self._rows = None

    def train(self, mode: bool = True) -> Self:
        """See ``nn.Module.train``; what was kept of the weights is let go."""
        self._let_go()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # The weights go to another device, or become numbers of another type.
        self._let_go()
        return super()._apply(fn, recurse)

    def _let_go(self) -> None:
        self._vectors = None
        self.quantised.clear()

    def output_weight(self, vectors: Tensor | None = None) -> Tensor:
        """Vectors of the catalogue's items, [I, D]: the output matrix."""
        vectors = self.item_vectors() if vectors is None else vectors
        # The gradient of a part would be a copy of it.
        count = len(self.held_items)
        return vectors if self._rows is not None or len(vectors) == count else vectors[:count]

    def score_vectors(self) -> Tensor | None:
        """Vectors of the items, [I, D], whose products with queries are :meth:`scores`.

        None where a backbone makes its scores in another way, or no kernel may rank by them.
        """
        own = type(self).scores is not TiedItems.scores
        return None if own or not self.may_fuse else self.output_weight()

    @torch.no_grad()
    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """Scores of the items start .. stop-1, float32 [B, stop - start].

        The user's own items are not told apart; see :meth:`SequenceModel.own_scores`.
        """
        # In bfloat16 many scores would be equal, and equal scores count as wrong.
        with torch.autocast(queries.device.type, enabled=False):
            return queries.float() @ self.item_vectors()[start:stop].float().T
