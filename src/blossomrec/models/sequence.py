"""What all sequence models have in common: tied item embeddings, and how a catalogue is scored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blossomrec.attention import AttentionOutput
from blossomrec.attention.packing import histories
from blossomrec.config import ModelConfig, RunConfig, check
from blossomrec.data.batches import TrainingBatches, target_importance
from blossomrec.data.fields import EventFields, Tables
from blossomrec.errors import ConfigError, DataError
from blossomrec.models import fused
from blossomrec.models.features import Asked, Content, EventInputs, UserContent, gaps, passed
from blossomrec.models.inputs import inputs_of, seen_fields
from blossomrec.models.own_history import OwnHistory
from blossomrec.models.own_history.items import OwnItems
from blossomrec.models.shard import held_rows, sharded, start_table
from blossomrec.ranks import ALONE, Ranks
from blossomrec.registry import BACKBONES

if TYPE_CHECKING:
    import numpy as np

    from blossomrec.data.batch import Batch
    from blossomrec.data.features import FeatureTable
    from blossomrec.data.log import EventLog
    from blossomrec.models.recurrent import RecurrentState
    from blossomrec.models.state import ModelState


# Share of the events of a training step after which nobody says for when is asked, or for what.
UNTIMED_SHARE = 0.05
ANY_KIND_SHARE = 0.1
# Share of the histories of a training step whose user is not known.
STRANGER_SHARE = 0.05


@dataclass(frozen=True)
class Encoded:
    """Packed histories after the model.

    Attributes:
        hidden: [T, D], to be compared with item embeddings.
        selector_loss: scalar, mean over the layers that have one; None without any.
        layers: what each layer's attention gave; empty unless it was asked for.
        catalogue: [I, D], vectors of the items; None where they are the embeddings alone.
        asked: what the model was told of each request; None where it is told nothing.
    """

    hidden: Tensor
    selector_loss: Tensor | None = None
    layers: tuple[AttentionOutput, ...] = ()
    catalogue: Tensor | None = None
    asked: Asked | None = None


class SequenceModel(nn.Module):
    """Base of the neural models; a scorer of next items.

    Item embeddings times sqrt(D) (after a layer norm if ``config.norm`` is "post") pass the layers
    that a subclass adds (and a last layer norm if it is "pre"); the result is compared with the
    embeddings as they are. Dropout follows the embeddings.

    Args:
        config: the architecture.
        num_items: size of the catalogue, I.
        extra_rows: embeddings besides the catalogue's, from row I on.

    Attributes:
        held: rows of the item table that it has: all, unless ranks share them.
        causal: whether an event sees only itself and what came before.
        captured: whether a training step may be a CUDA graph: ``encode`` takes batches that are
            padded to one shape, and never waits for the device.
        takes_features: whether it can see more than ids: what it encodes comes from :meth:`embed`,
            :meth:`ask` is told for when is recommended, and its output is compared with
            :meth:`item_vectors`.
    """

    trained: Tensor
    causal: ClassVar[bool] = True
    captured: ClassVar[bool] = False
    takes_features: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, num_items: int, *, extra_rows: int = 0):
        super().__init__()
        self.config, self.num_items, self.extra_rows = config, num_items, extra_rows
        self.held = held_rows(num_items + extra_rows)
        self.item_embeddings = start_table(num_items + extra_rows, config.hidden_size)
        post = config.norm == "post"
        self.embedding_norm = nn.LayerNorm(config.hidden_size) if post else nn.Identity()
        self.final_norm = nn.Identity() if post else nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.content: Content | None = None
        self.user_content: UserContent | None = None
        self.event_inputs: EventInputs | None = None
        self.request_inputs: EventInputs | None = None
        self.own_history: OwnHistory | None = None
        self.tables = Tables()
        self._vectors: Tensor | None = None
        self._rows: Tensor | None = None

    def attach(self, tables: Tables) -> None:
        """Add what the configuration asks for besides ids; see :func:`build_model`."""
        config, size, clock = self.config, self.config.hidden_size, self.config.clock == "on"
        self.tables = Tables(
            items=tables.items if config.content == "on" else None,
            users=tables.users if config.user_table == "on" else None,
            fields=seen_fields(config, tables.fields),
        )
        kinds, context, known = len(self.fields.kinds), self.fields.context, 0
        if config.user_table == "on":
            self.user_content = UserContent(self._table("user_table", tables.users), size)
            known = self.user_content.width
        gap, asks, sees = (
            each == "on" for each in (config.time_gap, config.request_time, config.event_kinds)
        )
        if gap or clock or sees or context or known:
            self.event_inputs = EventInputs(
                size,
                gap=gap,
                clock=clock,
                kinds=kinds if sees else None,
                context=context,
                users=known,
                may_fuse=self.may_fuse,
            )
        wanted = kinds if config.request_kind == "on" else None
        if self.causal and (asks or wanted is not None):
            told = {"gap": asks, "clock": asks and clock, "kinds": wanted}
            self.request_inputs = EventInputs(size, **told, may_fuse=self.may_fuse)
        if config.content == "on":
            table = self._table("content", tables.items, self.num_items)
            self.content = Content(table, size, self.held_items)
            self.register_buffer("trained", torch.ones(len(self.held_items), dtype=torch.bool))
        if config.repeats == "on":
            timed = "times" in inputs_of(config)
            self.own_history = OwnHistory(size, config.max_len, timed=timed)

    def _table(self, option: str, table: FeatureTable | None, rows: int = 0) -> FeatureTable:
        if table is not None and (not rows or table.num_rows == rows):
            return table
        found = "none" if table is None else f"one of {table.num_rows} rows"
        needed = f"a table of {rows} items" if rows else "a table of users"
        raise ConfigError(f"model.{option} is 'on': {needed} is needed, {found} was given")

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
    def features(self) -> FeatureTable | None:
        """The table of items that it sees."""
        return self.tables.items

    @property
    def users(self) -> FeatureTable | None:
        """The table of users that it sees; its rows are those of the vocabulary saved with it."""
        return self.tables.users

    @property
    def fields(self) -> EventFields:
        """The kinds of events and the columns of context that it sees."""
        return self.tables.fields

    def keep_scales(self, fields: EventFields) -> None:
        """Take numbers of the context by mean and deviation as ``fields`` has them, where it does.

        Weights that were learned of numbers then go on to mean the same.
        """
        known = {one.name: one for one in fields.context if one.kind == "number"}
        context = tuple(
            replace(one, mean=known[one.name].mean, deviation=known[one.name].deviation)
            if one.kind == "number" and one.name in known
            else one
            for one in self.fields.context
        )
        self.tables = replace(self.tables, fields=EventFields(self.fields.kinds, context))
        if self.event_inputs is not None:
            self.event_inputs.rescale(context)

    def mark_trained(self, items: np.ndarray) -> None:
        """Tell which items have a training event, bool [I]; with content it makes a difference."""
        if self.content is not None:
            held = self.held_items
            self.trained.copy_(torch.from_numpy(items[held.start : held.stop]))

    @property
    def inputs(self) -> tuple[str, ...]:
        """What of the events it takes, names of the arrays of a :class:`History`.

        A backbone that always takes the same has a tuple of them as its class attribute.
        """
        return inputs_of(self.config)

    @classmethod
    def inputs_for(cls, config: RunConfig) -> tuple[str, ...]:
        """The ``inputs`` of a model of this configuration."""
        own: Any = cls.inputs
        return own if isinstance(own, tuple) else inputs_of(config.model)

    @property
    def kept_inputs(self) -> tuple[str, ...]:
        """Those that are known before something is asked."""
        return tuple(name for name in self.inputs if not name.startswith("asked"))

    @classmethod
    def training_batches(
        cls, log: EventLog, train_end: np.ndarray, config: RunConfig
    ) -> TrainingBatches:
        """What the model is trained on: by default the next event at every event.

        Args:
            train_end: int64 [U], how many of each user's first events may be trained on.
        """
        return TrainingBatches(
            log,
            train_end,
            inputs=cls.inputs_for(config),
            importance=target_importance(log, config.training),
            **batch_sizes(config),
        )

    @property
    def max_len(self) -> int:
        """Longest history, in events, that the model is given."""
        return self.config.max_len

    @property
    def may_fuse(self) -> bool:
        """Whether kernels may run for this model and its loss, where a GPU takes them."""
        return fused.allowed(self.config)

    def encode(
        self, batch: Batch, *, distil_rows: Tensor | None = None, keep_layers: bool = False
    ) -> Encoded:
        """Run the model over packed histories.

        Args:
            batch: with what ``inputs`` names, on the device of the model.
            distil_rows: int64 [C], rising: packed rows of the events from which the distillation of
                the attention's selector may sample; T, which is no row, may fill up the end. None:
                it is not computed.
            keep_layers: also return what each layer's attention gave.
        """
        raise NotImplementedError

    def encode_open(self, batch: Batch) -> Tensor:
        """What can be kept of packed histories before it is known what is asked: [T, D].

        :meth:`ask` makes of it the hidden states of :meth:`encode`.
        """
        return self.encode(batch).hidden

    def start(self) -> ModelState | RecurrentState:
        """The state of a user without events, to be given to :meth:`extend`.

        A backbone that has this and :meth:`extend_batch` is served from kept states; of a state of
        its own a server asks ``query`` [1, D], what the next item is scored from, and ``nbytes``.

        Raises:
            ConfigError: the backbone keeps no state.
        """
        raise ConfigError(f"backbone {self.config.backbone} keeps no state")

    def extend(self, batch: Batch, state: Any) -> tuple[Tensor, Any]:
        """Encode the next events of one user without running the earlier ones again.

        The hidden states are those of :meth:`encode` over the whole history. Offline, a history is
        cut to its last ``max_len`` events before it is encoded, so the two agree as long as it is
        no longer than that; a state goes on seeing what it holds.

        Args:
            batch: one history, of the t events after those of ``state``.
            state: made by :meth:`start` or an earlier call; it stays as it is, and may be extended
                again with other events (which copies it).

        Returns:
            Hidden states [t, D] of the new events, the last one being what the next item is scored
            from, and the state after them.

        Raises:
            ConfigError: the backbone keeps no state.
            RuntimeError: the model is in training mode.
            ValueError: the state is that of another architecture.
        """
        hidden, (extended,) = self.extend_batch(batch, [state])
        return hidden, extended

    def extend_batch(self, batch: Batch, states: Sequence[Any]) -> tuple[Tensor, list[Any]]:
        """Encode the next events of several users; see :meth:`extend`.

        Args:
            batch: a history of the new events, of which there may be none, for each user.
            states: of each user.
        """
        raise ConfigError(f"backbone {self.config.backbone} keeps no state")

    def embed(
        self, batch: Batch, vectors: Tensor | None = None, before: Tensor | None = None
    ) -> Tensor:
        """Input of the first layer, [T, D].

        Args:
            vectors: as of :meth:`item_vectors`; None for what it gives.
            before: time of the event before each history's first, int64 [B], negative for none.
        """
        vectors = self.item_vectors() if vectors is None else vectors
        # As large as what the layers add; as an output matrix the same numbers must be small.
        x, scale = F.embedding(batch.items, vectors), math.sqrt(self.config.hidden_size)
        if self.event_inputs is None:
            x = x * scale
        else:
            x = torch.add(self._besides_items(batch, before, self.event_inputs), x, alpha=scale)
        return self.dropout(self.embedding_norm(x))

    def _besides_items(self, batch: Batch, before: Tensor | None, inputs: EventInputs) -> Tensor:
        """What is seen of the events besides their items, [T, D]."""
        gap = users = vectors = None
        if inputs.gap:
            gap = _gaps(batch, before)
        if self.user_content is not None:
            rows, history = self._user_rows(batch)
            # A lookup is its own where every event is a history.
            users = self.user_content(rows)
            if len(self.user_content.of_many):
                vectors = self.user_content.vectors(rows)
            if history is not None:
                users = F.embedding(history, users)
                # Unlike indexing, a lookup has a gradient that is summed in a fixed order.
                vectors = None if vectors is None else F.embedding(history, vectors)
        x = inputs(gap, batch.times, batch.kinds, batch.context, users)
        return x if vectors is None else x + vectors

    def _user_rows(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Rows of the users of the histories, and which history each event is of; None where each
        is one of its own."""
        assert batch.users is not None
        if is_one_each(batch):
            return batch.users, None
        total = len(batch.items)
        rows = batch.users[batch.cu_seqlens[:-1].long().clamp(max=max(total - 1, 0))]
        if self.training:
            # So that a user that is not in the table is met in training.
            strangers = torch.rand(len(rows), device=rows.device) < STRANGER_SHARE
            rows = torch.where(strangers, -1, rows)
        return rows, histories(batch.cu_seqlens, total)

    def embedded(
        self, batch: Batch, vectors: Tensor | None = None, before: Tensor | None = None
    ) -> Tensor:
        """:meth:`embed`, given what there is: one of a backbone's own may take the batch alone."""
        given = {"before": before, "vectors": None if self.content is None else vectors}
        return self.embed(batch, **{name: each for name, each in given.items() if each is not None})

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
        self._vectors = None
        return super().train(mode)

    def output_weight(self, vectors: Tensor | None = None) -> Tensor:
        """Vectors of the catalogue's items, [I, D]: the output matrix."""
        vectors = self.item_vectors() if vectors is None else vectors
        # The gradient of a part would be a copy of it.
        count = len(self.held_items)
        return vectors if self._rows is not None or len(vectors) == count else vectors[:count]

    def asked(self, batch: Batch) -> Asked | None:
        """What :meth:`ask` is told after each event; None for a model that nothing is told."""
        told = self.request_inputs
        if told is None:
            return None
        gap = second = kind = None
        if told.gap:
            assert batch.asked is not None and batch.times is not None
            second, passed = batch.asked, (batch.asked - batch.times).clamp(min=0)
            unknown = (batch.asked < 0) | (batch.times < 0)
            gap = torch.where(unknown | self._untold(passed, UNTIMED_SHARE), -1, passed)
        if told.kinds is not None:
            assert batch.asked_kinds is not None
            any_kind = self._untold(batch.asked_kinds, ANY_KIND_SHARE)
            kind = torch.where(any_kind, 0, batch.asked_kinds)
        return Asked(gap, second, kind)

    def _untold(self, like: Tensor, share: float) -> Tensor:
        """Which are not told, bool [T]: in training some, so that this is met as well."""
        if not self.training:
            return torch.zeros_like(like, dtype=torch.bool)
        return torch.rand(len(like), device=like.device) < share

    def ask(self, kept: Tensor, asked: Asked | None) -> Tensor:
        """What the next item is scored from, [B, D], for what is asked.

        Args:
            kept: [B, D], as of :meth:`encode_open` or a kept state.
            asked: of each history; None for a model that is told nothing, of which ``kept`` is all.
        """
        return kept

    @torch.no_grad()
    def queries(self, batch: Batch) -> Tensor:
        """What the next item of each history is scored from, [B, D]: the state at its last event.

        Raises:
            DataError: a history of the batch is empty.
        """
        self._refuse_empty(batch)
        return self.encode(batch).hidden[batch.last_rows]

    @torch.no_grad()
    def open_queries(self, batch: Batch) -> Tensor:
        """As :meth:`queries`, before it is known what is asked; see :meth:`ask`."""
        if self.request_inputs is None:
            return self.queries(batch)
        self._refuse_empty(batch)
        return self.encode_open(batch)[batch.last_rows]

    def _refuse_empty(self, batch: Batch) -> None:
        empty = (batch.cu_seqlens.diff() == 0).nonzero()
        if len(empty):
            raise DataError(f"history {empty[0].item()} of the batch has no events")

    def mixed_losses(
        self, losses: Tensor, encoded: Encoded, batch: Batch, rows: Tensor | None
    ) -> Tensor:
        """Losses, [M], with the user's own items mixed in, from those of the catalogue alone.

        Args:
            losses: negative logarithms of the probabilities of the targets in the catalogue.
            encoded: what the model made of the batch, which has targets.
            rows: of the events that are predicted from, int64 [M]; None for all.

        Raises:
            ConfigError: a backbone of somebody's own does not say what was asked.
        """
        if self.own_history is None:
            return losses
        if self.request_inputs is not None and encoded.asked is None:
            raise ConfigError(
                f"model.repeats is 'on': encode of backbone {self.config.backbone} must return "
                "what was asked, Encoded.asked"
            )
        hidden = encoded.hidden if rows is None else encoded.hidden.index_select(0, rows)
        catalogue = self.output_weight() if encoded.catalogue is None else encoded.catalogue
        ahead = None if encoded.asked is None else encoded.asked.gap
        return self.own_history.losses(losses, hidden, batch, rows, catalogue, ahead)

    def history_items(self, batch: Batch) -> OwnItems | None:
        """The items of each history, for :meth:`own_scores`; None for a model without a mixture.

        Args:
            batch: histories, none of them empty, with what ``inputs`` names.
        """
        if self.own_history is None:
            return None
        asked = self.asked(batch)
        gap = None if asked is None else asked.gap
        return self.own_history.items(batch, self.output_weight().detach(), gap)

    def own_scores(self, queries: Tensor, lse: Tensor, own: OwnItems, scores: Tensor) -> Tensor:
        """Scores of own items, [N], such that a softmax of all scores is what the model says.

        Args:
            queries: [B, D].
            lse: logarithm of the summed exponentials of :meth:`scores` of the whole catalogue, [B].
            own: the items of the same histories.
            scores: of the N items, by :meth:`scores`.
        """
        assert self.own_history is not None
        return self.own_history.scores(queries, lse, own, scores)

    def score_vectors(self) -> Tensor | None:
        """Vectors of the items, [I, D], whose products with queries are :meth:`scores`.

        None where a backbone makes its scores in another way, or no kernel may rank by them.
        """
        own = type(self).scores is not SequenceModel.scores
        return None if own or not self.may_fuse else self.output_weight()

    @torch.no_grad()
    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """Scores of the items start .. stop-1, float32 [B, stop - start].

        The user's own items are not told apart; see :meth:`own_scores`.
        """
        # In bfloat16 many scores would be equal, and equal scores count as wrong.
        with torch.autocast(queries.device.type, enabled=False):
            return queries.float() @ self.item_vectors()[start:stop].float().T


def batch_sizes(config: RunConfig) -> dict[str, Any]:
    """The options that all training batches have."""
    return {
        "max_len": config.model.max_len,
        "tokens_per_batch": config.training.tokens_per_batch,
        "seed": config.training.seed,
    }


def build_model(
    config: ModelConfig,
    num_items: int,
    tables: Tables | None = None,
    ranks: Ranks | None = None,
) -> SequenceModel:
    """The model that ``config.backbone`` names, with start values from PyTorch's generator.

    Args:
        config: the architecture; an input that is neither "on" nor "off" is off.
        num_items: size of the catalogue.
        tables: what is known of items, users and events, such as ``log.tables``.
        ranks: who share the item table; this one's model has its rows, with the numbers that they
            have in the whole, and all the rest.

    Raises:
        ConfigError: an option is out of bounds or does not fit another one, or there are no items.
    """
    check(config, "model.")
    if num_items < 1:
        raise ConfigError(f"num_items is {num_items}: a catalogue needs at least 1 item")
    with sharded(ranks or ALONE):
        model = BACKBONES.get(config.backbone)(config, num_items)
    if not len(model.held_items):
        raise ConfigError(
            f"num_items is {num_items}: too few for each rank to have some of them, choose fewer"
        )
    # Last, so that a model without other inputs begins with the numbers that it always began with.
    model.attach(Tables() if tables is None else tables)
    return model


def is_one_each(batch: Batch) -> bool:
    """Whether every history of a batch is a single event."""
    return batch.max_length == 1 and len(batch.items) == batch.num_histories


def _gaps(batch: Batch, before: Tensor | None) -> Tensor:
    assert batch.times is not None
    if before is not None and is_one_each(batch):
        return passed(before, batch.times)
    return gaps(batch.times, batch.cu_seqlens, before)
