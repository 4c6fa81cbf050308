"""From a configuration to the item table of a training, where it is one of rows."""

from __future__ import annotations

from typing import cast

from torch import nn

from blossomrec.config import TrainingConfig
from blossomrec.errors import ConfigError
from blossomrec.losses import TrainingLoss
from blossomrec.losses.sampled import SampledLoss
from blossomrec.models.sequence import SequenceModel
from blossomrec.training.sparse.rules import RULES
from blossomrec.training.sparse.table import RowTable

NAME = "item_embeddings.weight"


def build_table(
    model: SequenceModel, loss: TrainingLoss, config: TrainingConfig
) -> RowTable | None:
    """The item embeddings as a table of rows; None where they are updated like all else.

    Args:
        model: on the device of the training.
        loss: that it is trained with.

    Raises:
        ConfigError: ``table_optimizer`` asks for it, but the loss or the model needs all rows.
    """
    if config.table_optimizer == "adamw":
        return None
    reason = _obstacle(model, loss, config)
    if reason:
        raise ConfigError(
            f"training.table_optimizer is {config.table_optimizer!r}, but {reason}: choose another,"
            " or adamw"
        )
    factor = 1.0
    if config.table_learning_rate and config.learning_rate:
        factor = config.table_learning_rate / config.learning_rate
    rule = RULES[config.table_optimizer]()
    weight = cast(nn.Parameter, model.item_embeddings.weight)
    return RowTable(NAME, weight, rule, rate_factor=factor, may_fuse=model.may_fuse)


def _obstacle(model: SequenceModel, loss: TrainingLoss, config: TrainingConfig) -> str:
    """What needs all rows of the table, as the end of a sentence; empty for nothing."""
    if not (isinstance(loss, SampledLoss) and loss.sparse):
        return f"training.loss {config.loss!r} needs all items"
    if model.content is not None:
        return "model.content is 'on', which makes the vectors of all items at every step"
    if not model.takes_features:
        return f"model.backbone {model.config.backbone!r} does not say that it takes item_vectors"
    return ""
