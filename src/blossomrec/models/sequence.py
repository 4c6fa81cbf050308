"""What all sequence models have in common: tied item embeddings, and how a catalogue is scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blossomrec.attention import AttentionOutput
from blossomrec.config import ModelConfig, RunConfig, check
from blossomrec.data.batches import TrainingBatches, target_importance
from blossomrec.errors import ConfigError, DataError
from blossomrec.models import fused
from blossomrec.models.features import Content, Moments, gaps
from blossomrec.models.inputs import inputs_of
from blossomrec.registry import BACKBONES

if TYPE_CHECKING:
    import numpy as np

    from blossomrec.data.batch import Batch
    from blossomrec.data.features import FeatureTable
    from blossomrec.data.log import EventLog
    from blossomrec.models.state import ModelState


# Share of the events of a training step after which nobody says for when is asked.
UNTIMED_SHARE = 0.05


@dataclass(frozen=True)
class Encoded:
    """Packed histories after the model.

    Attributes:
        hidden: [T, D], to be compared with item embeddings.
        selector_loss: scalar, mean over the layers that have one; None without any.
        layers: what each layer's attention gave; empty unless it was asked for.
        catalogue: [I, D], vectors of the items; None where they are the embeddings alone.
    """

    hidden: Tensor
    selector_loss: Tensor | None = None
    layers: tuple[AttentionOutput, ...] = ()
    catalogue: Tensor | None = None


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
        self.config, self.num_items, self._extra_rows = config, num_items, extra_rows
        self.item_embeddings = nn.Embedding(num_items + extra_rows, config.hidden_size)
        post = config.norm == "post"
        self.embedding_norm = nn.LayerNorm(config.hidden_size) if post else nn.Identity()
        self.final_norm = nn.Identity() if post else nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.item_embeddings.weight, std=0.02)
        self.content: Content | None = None
        self.event_moments: Moments | None = None
        self.request_moments: Moments | None = None
        self.features: FeatureTable | None = None
        self._vectors: Tensor | None = None

    def attach(self, features: FeatureTable | None) -> None:
        """Add what the configuration asks for besides ids; see :func:`build_model`."""
        self.features = features if self.config.content == "on" else None
        config, clock = self.config, self.config.clock == "on"
        if config.time_gap == "on" or clock:
            self.event_moments = Moments(config.hidden_size, clock=clock)
        if config.request_time == "on" and self.causal:
            self.request_moments = Moments(config.hidden_size, clock=clock)
        if config.content == "on":
            if features is None or features.num_rows != self.num_items:
                rows = "none" if features is None else f"one of {features.num_rows} rows"
                raise ConfigError(
                    f"model.content is 'on': a table of {self.num_items} items is needed, {rows} "
                    "was given"
                )
            self.content = Content(features, config.hidden_size)
            self.register_buffer("trained", torch.ones(self.num_items, dtype=torch.bool))

    def mark_trained(self, items: np.ndarray) -> None:
        """Tell which items have a training event, bool [I]; with content it makes a difference."""
        if self.content is not None:
            self.trained.copy_(torch.from_numpy(items))

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
        return tuple(name for name in self.inputs if name != "asked")

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

    def start(self) -> ModelState:
        """The state of a user without events, to be given to :meth:`extend`.

        A backbone that has this and :meth:`extend_batch` is served from kept states; of a state of
        its own a server asks ``query`` [1, D], what the next item is scored from, and ``nbytes``.

        Raises:
            ConfigError: the backbone keeps no state.
        """
        raise ConfigError(f"backbone {self.config.backbone} keeps no state")

    def extend(self, batch: Batch, state: ModelState) -> tuple[Tensor, ModelState]:
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

    def extend_batch(
        self, batch: Batch, states: Sequence[ModelState]
    ) -> tuple[Tensor, list[ModelState]]:
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
        x = F.embedding(batch.items, vectors) * math.sqrt(self.config.hidden_size)
        if self.event_moments is not None:
            assert batch.times is not None
            gap = gaps(batch.times, batch.cu_seqlens, before)
            x = x + self.event_moments(gap, batch.times)
        return self.dropout(self.embedding_norm(x))

    def embedded(
        self, batch: Batch, vectors: Tensor | None = None, before: Tensor | None = None
    ) -> Tensor:
        """:meth:`embed`, given what there is: one of a backbone's own may take the batch alone."""
        given = {"before": before, "vectors": None if self.content is None else vectors}
        return self.embed(batch, **{name: each for name, each in given.items() if each is not None})

    def item_vectors(self) -> Tensor:
        """What items are at input and output, [I, D], and what rows besides them are, from row I.

        Embeddings of their ids and, with content, what the table says of them. In training a share
        of the items, drawn anew with each call, goes without the embedding of its id, so that the
        rest learns to stand alone; items without a training event always do.
        """
        weight = self.item_embeddings.weight
        if self.content is None:
            return weight
        kept = not self.training and not torch.is_grad_enabled()
        if kept and self._vectors is not None:
            return self._vectors
        ids = self.trained
        if self.training:
            draws = torch.rand(self.num_items, device=weight.device)
            ids = ids & (draws >= self.config.id_dropout)
        items = weight[: self.num_items] * ids[:, None] + self.content()
        vectors = torch.cat((items, weight[self.num_items :])) if self._extra_rows else items
        if kept:
            self._vectors = vectors
        return vectors

    def train(self, mode: bool = True) -> Self:
        """See ``nn.Module.train``; what was kept of the weights is let go."""
        self._vectors = None
        return super().train(mode)

    def output_weight(self, vectors: Tensor | None = None) -> Tensor:
        """Vectors of the catalogue's items, [I, D]: the output matrix."""
        vectors = self.item_vectors() if vectors is None else vectors
        # The gradient of a part would be a copy of it.
        return vectors if len(vectors) == self.num_items else vectors[: self.num_items]

    def asked(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """What :meth:`ask` is told after each event: gaps and moments, int64 [T] each.

        None for a model that nothing is told.
        """
        if self.request_moments is None:
            return None
        assert batch.asked is not None and batch.times is not None
        gap = (batch.asked - batch.times).clamp(min=0)
        unknown = (batch.asked < 0) | (batch.times < 0)
        if self.training:
            # So that what is asked for at no moment in particular is met in training.
            unknown = unknown | (torch.rand(len(gap), device=gap.device) < UNTIMED_SHARE)
        return torch.where(unknown, -1, gap), batch.asked

    def ask(self, kept: Tensor, asked: tuple[Tensor, Tensor] | None) -> Tensor:
        """What the next item is scored from, [B, D], for the moments for which is recommended.

        Args:
            kept: [B, D], as of :meth:`encode_open` or a kept state.
            asked: seconds from the last event of each history to the moment, negative where it is
                not known, and the moment, both int64 [B]; None for a model that sees no moments, of
                which ``kept`` is all.
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
        if self.request_moments is None:
            return self.queries(batch)
        self._refuse_empty(batch)
        return self.encode_open(batch)[batch.last_rows]

    def _refuse_empty(self, batch: Batch) -> None:
        empty = (batch.cu_seqlens.diff() == 0).nonzero()
        if len(empty):
            raise DataError(f"history {empty[0].item()} of the batch has no events")

    @torch.no_grad()
    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """Scores of the items start .. stop-1, float32 [B, stop - start]."""
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
    config: ModelConfig, num_items: int, features: FeatureTable | None = None
) -> SequenceModel:
    """The model that ``config.backbone`` names, with start values from PyTorch's generator.

    Args:
        config: the architecture; an input that is neither "on" nor "off" is off.
        num_items: size of the catalogue.
        features: what is known of its items, for ``config.content``.

    Raises:
        ConfigError: an option is out of bounds or does not fit another one, or there are no items.
    """
    check(config, "model.")
    if num_items < 1:
        raise ConfigError(f"num_items is {num_items}: a catalogue needs at least 1 item")
    model = BACKBONES.get(config.backbone)(config, num_items)
    # Last, so that a model without other inputs begins with the numbers that it always began with.
    model.attach(features)
    return model
