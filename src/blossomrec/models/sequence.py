"""What all sequence models have in common: tied item embeddings, and how a catalogue is scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from blossomrec.attention import AttentionOutput
from blossomrec.config import ModelConfig, check
from blossomrec.errors import ConfigError, DataError

if TYPE_CHECKING:
    from blossomrec.data.batches import Batch
    from blossomrec.models.state import ModelState


@dataclass(frozen=True)
class Encoded:
    """Packed histories after the model.

    Attributes:
        hidden: [T, D], to be compared with item embeddings.
        selector_loss: scalar, mean over the layers that have one; None without any.
        layers: what each layer's attention gave; empty unless it was asked for.
    """

    hidden: Tensor
    selector_loss: Tensor | None = None
    layers: tuple[AttentionOutput, ...] = ()


class SequenceModel(nn.Module):
    """Base of the neural models; a scorer of next items.

    Item embeddings times sqrt(D) (after a layer norm if ``config.norm`` is "post") pass the layers
    that a subclass adds (and a last layer norm if it is "pre"); the result is compared with the
    embeddings as they are. Dropout follows the embeddings.

    Args:
        config: the architecture.
        num_items: size of the catalogue, I.
        extra_rows: embeddings besides the catalogue's, from row I on.
    """

    def __init__(self, config: ModelConfig, num_items: int, *, extra_rows: int = 0):
        super().__init__()
        self.config, self.num_items = config, num_items
        self.item_embeddings = nn.Embedding(num_items + extra_rows, config.hidden_size)
        post = config.norm == "post"
        self.embedding_norm = nn.LayerNorm(config.hidden_size) if post else nn.Identity()
        self.final_norm = nn.Identity() if post else nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.item_embeddings.weight, std=0.02)

    @property
    def max_len(self) -> int:
        """Longest history, in events, that the model is given."""
        return self.config.max_len

    def encode(
        self,
        items: Tensor,
        cu_seqlens: Tensor,
        max_length: int,
        *,
        lessons: Tensor | None = None,
        keep_layers: bool = False,
    ) -> Encoded:
        """Run the model over packed histories.

        Args:
            items: int64 [T], item rows, the events of all histories one after another.
            cu_seqlens: int32 [B+1], where each history starts.
            max_length: length of the longest history.
            lessons: int64 [C], rising: packed rows from which the loss that teaches the attention's
                selector may draw its lessons; T, which is no row, may fill up the end. None: it is
                not computed.
            keep_layers: also return what each layer's attention gave.
        """
        raise NotImplementedError

    def start(self) -> ModelState:
        """The state of a user without events, to be given to :meth:`extend`.

        Raises:
            ConfigError: the backbone keeps no state.
        """
        raise ConfigError(f"backbone {self.config.backbone} keeps no state: only sasrec does")

    def extend(self, items: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Encode the next events of one user without running the earlier ones again.

        The hidden states are those of :meth:`encode` over the whole history. Offline, a history is
        cut to its last ``max_len`` events before it is encoded, so the two agree as long as it is
        no longer than that; a state goes on seeing what it holds.

        Args:
            items: int64 [t], item rows of the events after those of ``state``.
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
        hidden, (extended,) = self.extend_batch(items, [len(items)], [state])
        return hidden, extended

    def extend_batch(
        self, items: Tensor, counts: Sequence[int], states: Sequence[ModelState]
    ) -> tuple[Tensor, list[ModelState]]:
        """Encode the next events of several users; see :meth:`extend`.

        Args:
            items: int64 [t], user after user.
            counts: new events of each user, t in all.
            states: of each user.
        """
        raise ConfigError(f"backbone {self.config.backbone} keeps no state: only sasrec does")

    def embed(self, items: Tensor) -> Tensor:
        """Input of the first layer, [T, D]."""
        # As large as what the layers add; as an output matrix the same numbers must be small.
        x = self.item_embeddings(items) * math.sqrt(self.config.hidden_size)
        return self.dropout(self.embedding_norm(x))

    def output_weight(self) -> Tensor:
        """Embeddings of the catalogue's items, [I, D]: the output matrix."""
        weight = self.item_embeddings.weight
        # The gradient of a part would be a copy of it.
        return weight if len(weight) == self.num_items else weight[: self.num_items]

    @torch.no_grad()
    def queries(self, batch: Batch) -> Tensor:
        """What the next item of each history is scored from, [B, D]: the state at its last event.

        Raises:
            DataError: a history of the batch is empty.
        """
        empty = (batch.cu_seqlens.diff() == 0).nonzero()
        if len(empty):
            raise DataError(f"history {empty[0].item()} of the batch has no events")
        encoded = self.encode(batch.items, batch.cu_seqlens, batch.max_length)
        return encoded.hidden[batch.cu_seqlens[1:].long() - 1]

    @torch.no_grad()
    def scores(self, queries: Tensor, start: int, stop: int) -> Tensor:
        """Scores of the items start .. stop-1, float32 [B, stop - start]."""
        # In bfloat16 many scores would be equal, and equal scores count as wrong.
        with torch.autocast(queries.device.type, enabled=False):
            return queries.float() @ self.item_embeddings.weight[start:stop].float().T


def build_model(config: ModelConfig, num_items: int) -> SequenceModel:
    """The model that ``config.backbone`` names, with start values from PyTorch's generator.

    Raises:
        ConfigError: an option is out of bounds or does not fit another one, or there are no items.
    """
    # Here, because the backbones are made from this module's base class.
    from blossomrec.models.bert4rec import BERT4Rec
    from blossomrec.models.gru4rec import GRU4Rec
    from blossomrec.models.sasrec import SASRec

    check(config, "model.")
    if num_items < 1:
        raise ConfigError(f"num_items is {num_items}: a catalogue needs at least 1 item")
    backbones = {"sasrec": SASRec, "bert4rec": BERT4Rec, "gru4rec": GRU4Rec}
    return backbones[config.backbone](config, num_items)
