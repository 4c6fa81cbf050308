"""The encoder of a trained model as one graph: padded histories to what items are scored from."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blossomrec.attention import BlossomAttention
from blossomrec.attention.rotary import cos_sin, rotated_pairs, time_cos_sin
from blossomrec.exporting.dense import DenseAttention, DenseBlossom, DenseFull, Padded
from blossomrec.exporting.lookups import Lookups, sees_events, user_vectors
from blossomrec.models.bert4rec import BERT4Rec
from blossomrec.models.event_inputs import EventInputs, Seen
from blossomrec.models.full import FullAttention
from blossomrec.models.sequence import SequenceModel
from blossomrec.models.transformer import TransformerLayer, TransformerModel

# What the graph is given of B histories, by name.
Inputs = dict[str, Tensor]


def input_names(model: SequenceModel) -> list[str]:
    """What the encoder of a model is given, in this order."""
    items, *others = model.inputs
    return [items, "lengths", *others]


class DenseEncoder(nn.Module):
    """A trained SASRec or BERT4Rec over padded histories, in operations that every engine has.

    The vectors are those of ``model.queries`` over the same events.

    Args:
        model: in evaluation mode, on the host.

    Attributes:
        item_vectors: [I, D], with the content of the items in them, and with a last row more, the
            mask, of BERT4Rec.
        names: of the inputs, in the order in which they are given.
        user_vectors: [U + 1, D], of users who are in the table, and of all others; None where the
            model sees none.
    """

    item_vectors: Tensor
    user_vectors: Tensor | None

    @torch.no_grad()
    def __init__(self, model: TransformerModel):
        super().__init__()
        self.config, self.names = model.config, input_names(model)
        self.mask_item = model.mask_item if isinstance(model, BERT4Rec) else None
        self.register_buffer("item_vectors", model.item_vectors().detach())
        self.register_buffer("user_vectors", _users(model))
        self.embedding_norm, self.final_norm = model.embedding_norm, model.final_norm
        self.layers = nn.ModuleList(model.stack())
        self.attentions = nn.ModuleList(
            _dense(layer.attention, model.config.max_len + 1) for layer in model.stack()
        )
        self.event_inputs = _lookups(model.event_inputs)
        self.request_inputs = _lookups(model.request_inputs)

    def forward(self, *tensors: Tensor) -> Tensor:
        """[B, D] of the inputs, in the order of ``names``; ``description`` says what each is."""
        given = self._longer(dict(zip(self.names, tensors, strict=True)))
        lengths, count = given["lengths"], given["items"].shape[1]
        position = torch.arange(count, device=lengths.device)
        padded = Padded(lengths, position, self._angles(position, given.get("times")))
        x = self._embedded(given)
        *others, last = self._stack()
        for layer, attention in others:
            x = layer.finish(_attended(layer, attention, x, padded))
        x = _attended(*last, x, padded)
        # [B, D] at the last event: what comes now is not needed of the others.
        x = x.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, x.shape[-1]))[:, 0]
        return self.final_norm(last[0].finish(x, self._request(given)))

    def _stack(self) -> list[tuple[TransformerLayer, DenseAttention]]:
        """The layers, each with its attention."""
        pairs = zip(self.layers, self.attentions, strict=True)
        return [cast("tuple[TransformerLayer, DenseAttention]", pair) for pair in pairs]

    def _longer(self, given: Inputs) -> Inputs:
        """Histories with one more place: for the mask of BERT4Rec, or empty.

        A graph is made for several events, and would not take histories of one.
        """
        longer = {
            name: torch.cat((each, each[:, :1]), 1) if each.dim() > 1 else each
            for name, each in given.items()
        }
        return longer if self.mask_item is None else self._masked(longer, self.mask_item)

    def _masked(self, given: Inputs, mask_item: int) -> Inputs:
        """A mask behind the last event of each history, whose last place is empty."""
        lengths, masked = given["lengths"], dict(given)
        new = torch.arange(given["items"].shape[1], device=lengths.device) == lengths[:, None]
        masked["items"] = torch.where(new, mask_item, given["items"])
        if "times" in given:
            # A mask has the time of the event that it stands for.
            moment = _last(given["times"], lengths)
            if "asked" in given:
                moment = torch.where(given["asked"] < 0, moment, given["asked"])
            masked["times"] = torch.where(new, moment[:, None], given["times"])
        if "kinds" in given:
            wanted = given.get("asked_kinds", torch.zeros_like(lengths))
            masked["kinds"] = torch.where(new, wanted[:, None], given["kinds"])
        if "context" in given:
            masked["context"] = given["context"].masked_fill(new[..., None], torch.nan)
        return masked | {"lengths": lengths + 1}

    def _angles(self, position: Tensor, times: Tensor | None) -> Tensor:
        size = self.config.hidden_size // self.config.heads
        angles = cos_sin(position, size, self.config.rotary_share)[None]
        pairs = rotated_pairs(size, self.config.time_share)
        if not pairs:
            return angles
        assert times is not None
        timed = time_cos_sin(times.flatten(), pairs).unflatten(0, times.shape)
        return torch.cat((angles.expand(times.shape[0], -1, -1, -1), timed), -1)

    def _embedded(self, given: Inputs) -> Tensor:
        x = F.embedding(given["items"], self.item_vectors) * math.sqrt(self.config.hidden_size)
        if self.event_inputs is not None:
            times = given.get("times")
            gap = _gaps(times) if times is not None and self.event_inputs.inputs.gap else None
            x = x + self.event_inputs(Seen(gap, times, given.get("kinds"), given.get("context")))
        if self.user_vectors is not None:
            unknown, users = len(self.user_vectors) - 1, given["users"]
            rows = torch.where(users < 0, unknown, users)
            x = x + F.embedding(rows, self.user_vectors)[:, None]
        return self.embedding_norm(x)

    def _request(self, given: Inputs) -> Tensor | None:
        """What is added for what is asked, [B, D]."""
        if self.request_inputs is None:
            return None
        gap, second = None, given.get("asked")
        if second is not None:
            gap = _passed(_last(given["times"], given["lengths"]), second)
        return self.request_inputs(Seen(gap, second, given.get("asked_kinds")))


def _attended(
    layer: TransformerLayer, attention: DenseAttention, x: Tensor, padded: Padded
) -> Tensor:
    return layer.with_attended(x, attention(layer.attention_input(x), padded))


def _dense(attention: BlossomAttention | FullAttention, limit: int) -> DenseAttention:
    if isinstance(attention, BlossomAttention):
        return DenseBlossom(attention, limit)
    return DenseFull(attention)


def _lookups(inputs: EventInputs | None) -> Lookups | None:
    return Lookups(inputs) if inputs is not None and sees_events(inputs) else None


def _users(model: TransformerModel) -> Tensor | None:
    if model.user_content is None or model.event_inputs is None or model.users is None:
        return None
    return user_vectors(model.event_inputs, model.user_content, model.users.num_rows)


def _last(events: Tensor, lengths: Tensor) -> Tensor:
    """At the last event of each history, [B], of [B, L]."""
    return events.gather(1, (lengths - 1)[:, None])[:, 0]


def _gaps(times: Tensor) -> Tensor:
    """Time from the event before, int64 [B, L]; -1 where there is none."""
    first = torch.full_like(times[:, :1], -1)
    return _passed(torch.cat((first, times[:, :-1]), 1), times)


def _passed(before: Tensor, after: Tensor) -> Tensor:
    """Seconds between two times, at least 0; -1 where one of them is not known."""
    known = (before >= 0) & (after >= 0)
    return torch.where(known, (after - before).clamp(min=0), -1)
