"""What all sequence models have in common: histories in, what the next item is scored from out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from blossomrec.attention import AttentionOutput
from blossomrec.config import ModelConfig, RunConfig
from blossomrec.data.batches import TrainingBatches
from blossomrec.data.batching.importance import target_importance
from blossomrec.data.fields import EventFields, Tables
from blossomrec.errors import ConfigError, DataError
from blossomrec.models import fused
from blossomrec.models.event_inputs import Asked, EventInputs
from blossomrec.models.event_parts import (
    besides_items,
    event_part,
    request_part,
    rescaled,
    seen_tables,
    told,
    user_part,
)
from blossomrec.models.features import UserContent
from blossomrec.models.fused.embedding import embedding
from blossomrec.models.inputs import inputs_of
from blossomrec.models.own_history import OwnHistory
from blossomrec.models.own_history.items import OwnItems
from blossomrec.models.tied_items import TiedItems

if TYPE_CHECKING:
    import numpy as np

    from blossomrec.data.batch import Batch
    from blossomrec.data.features import FeatureTable
    from blossomrec.data.log import EventLog
    from blossomrec.models.recurrent import RecurrentState
    from blossomrec.models.state import ModelState


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


class SequenceModel(TiedItems):
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

    causal: ClassVar[bool] = True
    captured: ClassVar[bool] = False
    takes_features: ClassVar[bool] = False

    def __init__(self, config: ModelConfig, num_items: int, *, extra_rows: int = 0):
        super().__init__(config, num_items, extra_rows=extra_rows)
        post = config.norm == "post"
        self.embedding_norm = nn.LayerNorm(config.hidden_size) if post else nn.Identity()
        self.final_norm = nn.Identity() if post else nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.user_content: UserContent | None = None
        self.event_inputs: EventInputs | None = None
        self.request_inputs: EventInputs | None = None
        self.own_history: OwnHistory | None = None
        self.tables = Tables()

    def attach(self, tables: Tables) -> None:
        """Add what the configuration asks for besides ids; see :func:`build_model`."""
        config, fuses = self.config, self.may_fuse
        self.tables = seen_tables(config, tables)
        self.user_content = user_part(config, tables.users, may_fuse=fuses)
        self.event_inputs = event_part(config, self.fields, self.user_content, may_fuse=fuses)
        if self.causal:
            self.request_inputs = request_part(config, self.fields, may_fuse=fuses)
        if config.content == "on":
            self.attach_content(tables.items)
        if config.repeats == "on":
            timed = "times" in inputs_of(config)
            size, longest = config.hidden_size, config.max_len
            self.own_history = OwnHistory(size, longest, timed=timed, may_fuse=fuses)

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
        self.tables = replace(self.tables, fields=rescaled(self.fields, fields))
        if self.event_inputs is not None:
            self.event_inputs.rescale(self.fields.context)

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
        x = embedding(batch.items, vectors, may_fuse=self.may_fuse)
        scale = math.sqrt(self.config.hidden_size)
        if self.event_inputs is None:
            x = x * scale
        else:
            x = torch.add(besides_items(self, self.event_inputs, batch, before), x, alpha=scale)
        return self.dropout(self._normed(x))

    def _normed(self, x: Tensor) -> Tensor:
        norm = self.embedding_norm
        trains = torch.is_grad_enabled() and x.requires_grad and len(x) > 0
        fuses = trains and x.dtype == torch.float32 and self.may_fuse and fused.usable(x)
        if not fuses or type(norm) is not nn.LayerNorm or norm.bias is None:
            return norm(x)
        from blossomrec.models.fused.norm import layer_norm

        return layer_norm(x, norm)

    def embedded(
        self, batch: Batch, vectors: Tensor | None = None, before: Tensor | None = None
    ) -> Tensor:
        """:meth:`embed`, given what there is: one of a backbone's own may take the batch alone."""
        given = {"before": before, "vectors": None if self.content is None else vectors}
        return self.embed(batch, **{name: each for name, each in given.items() if each is not None})

    def asked(self, batch: Batch) -> Asked | None:
        """What :meth:`ask` is told after each event; None for a model that nothing is told."""
        if self.request_inputs is None:
            return None
        return told(self.request_inputs, batch, training=self.training)

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


def batch_sizes(config: RunConfig) -> dict[str, Any]:
    """The options that all training batches have."""
    return {
        "max_len": config.model.max_len,
        "tokens_per_batch": config.training.tokens_per_batch,
        "seed": config.training.seed,
    }
