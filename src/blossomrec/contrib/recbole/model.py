"""BlossomRec as a model of RecBole; importing this makes its name known to RecBole.

Example:
    >>> import blossomrec.contrib.recbole.model
    >>> run_recbole(model="BlossomRec", dataset="ml-100k", config_dict=settings, saved=False)
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blossomrec.config import ModelConfig, check
from blossomrec.contrib.recbole.settings import OPTIONS, NoCounterpartError
from blossomrec.data.batch import Batch
from blossomrec.errors import ConfigError, MissingExtraError, shortened
from blossomrec.models.building import build_model

try:
    from recbole.model.abstract_recommender import (  # pyright: ignore[reportMissingImports]
        SequentialRecommender,
    )
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "recbole", "recbole") from error

# Settings of RecBole that are of the architecture.
SHARED = (
    *("MAX_ITEM_LIST_LENGTH", "hidden_size", "n_layers", "n_heads", "inner_size"),
    *("hidden_dropout_prob", "hidden_act"),
)
# What a sample of RecBole does not tell.
IDS_ALONE = (
    *("time_gap", "request_time", "clock", "content", "event_kinds", "request_kind"),
    *("context", "user_table", "repeats"),
)
# Where RecBole looks for a model of this name.
PLACE = "recbole.model.sequential_recommender.blossomrec"


def model_config(config: Any) -> ModelConfig:
    """The architecture that settings of RecBole and options of ``ModelConfig`` describe.

    Args:
        config: of RecBole, asked by ``in`` and ``[]``. An option of its own name, such as
            ``block_size``, comes before the setting that stands for it.

    Raises:
        ConfigError: a value is out of bounds, or has no counterpart.
    """
    options = dict[str, Any](dict.fromkeys(IDS_ALONE, "off"))
    for name in SHARED:
        if name in config and config[name] is not None:
            options |= _shared(name, config[name])
    for entry in dataclasses.fields(ModelConfig):
        if entry.name not in config or config[entry.name] is None:
            continue
        given = config[entry.name]
        if entry.name in IDS_ALONE and given != "off":
            raise ConfigError(f"{entry.name} is {given!r}: a model of RecBole sees ids alone")
        options[entry.name] = given
    made = ModelConfig(**options)
    check(made)
    return made


def _shared(name: str, value: Any) -> dict[str, Any]:
    """Options that a setting of RecBole comes to; ConfigError where a value has no counterpart."""
    try:
        return OPTIONS[name](value)
    except NoCounterpartError as error:
        raise ConfigError(f"{name} is {shortened(value)}: {error}") from error


class BlossomRec(SequentialRecommender):
    """A sequence model of ours for RecBole's trainers: by default SASRec with Blossom attention.

    Of each sample the last event predicts the target, by cross-entropy over all items or, with
    ``loss_type: BPR``, against a sampled one; the distillation of the selector is added to that.
    Item 0 of RecBole is padding and is never recommended.

    Args:
        config: RecBole's; see :func:`model_config`.
        dataset: RecBole's, which tells how many items there are.

    Raises:
        ConfigError: an option is out of bounds.
    """

    def __init__(self, config: Any, dataset: Any):
        super().__init__(config, dataset)
        self.loss_type = "CE"
        if "loss_type" in config:
            self.loss_type = config["loss_type"]
        if self.loss_type not in ("CE", "BPR"):
            raise ConfigError(f"loss_type is {self.loss_type!r}: choose one of CE, BPR")
        self.options = model_config(config)
        self.sequence_model = build_model(self.options, self.n_items - 1)

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the next item is scored from, [B, D], and the selector's loss in training.

        Args:
            item_seq: items of each history, padded with 0 at its end, int64 [B, L].
            item_seq_len: events of each, int64 [B].
        """
        length = item_seq.shape[1]
        there = torch.arange(length, device=item_seq.device) < item_seq_len[:, None]
        cu_seqlens = F.pad(item_seq_len.cumsum(0), (1, 0)).int()
        batch = Batch(item_seq[there] - 1, cu_seqlens, length)
        distilled = self.training and self.options.selector_weight > 0
        rows = batch.last_rows
        encoded = self.sequence_model.encode(batch, distil_rows=rows if distilled else None)
        return encoded.hidden[rows], encoded.selector_loss

    def calculate_loss(self, interaction: Any) -> Tensor:
        hidden, selector_loss = self._encoded(interaction)
        table, targets = self.sequence_model.output_weight(), interaction[self.POS_ITEM_ID] - 1
        if self.loss_type == "CE":
            loss = F.cross_entropy(hidden @ table.T, targets)
        else:
            others = table[targets] - table[interaction[self.NEG_ITEM_ID] - 1]
            loss = -F.logsigmoid((hidden * others).sum(-1)).mean()
        if selector_loss is None:
            return loss
        return loss + self.options.selector_weight * selector_loss

    def predict(self, interaction: Any) -> Tensor:
        hidden, _ = self._encoded(interaction)
        return (hidden * self.sequence_model.output_weight()[interaction[self.ITEM_ID] - 1]).sum(-1)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        hidden, _ = self._encoded(interaction)
        scores = hidden @ self.sequence_model.output_weight().T
        return F.pad(scores, (1, 0), value=-torch.inf)

    def _encoded(self, interaction: Any) -> tuple[Tensor, Tensor | None]:
        return self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])


# RecBole finds models by names of modules of its own.
sys.modules.setdefault(PLACE, sys.modules[__name__])
